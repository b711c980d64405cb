# What acceptance-*.sh have in common; sourced by them. `$failed` is set where a row fails, and `$work` holds logs.
failed=""

# median: of the lines of the standard input; median_of: of the arguments.
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
median_of() { printf '%s\n' "$@" | median; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

at_least() { # what value at-least
  if awk -v a="$2" -v b="$3" 'BEGIN { exit !(a >= b) }'; then echo "PASS  $1: $2 (at least $3)"; else
    echo "FAIL  $1: $2 (at least $3)"; failed=1; fi
}
at_most() { # what value at-most
  if awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }'; then echo "PASS  $1: $2 (at most $3)"; else
    echo "FAIL  $1: $2 (at most $3)"; failed=1; fi
}
is() { # what value expected
  if [ "$2" = "$3" ]; then echo "PASS  $1: $2"; else echo "FAIL  $1: $2 (expected $3)"; failed=1; fi
}

die() {
  echo "$*" >&2
  tail -n 30 "$work"/*.log >&2 2>/dev/null || true
  exit 1
}
# await SECONDS WHAT COMMAND…: until the command succeeds.
await() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$until" ] || die "not in time: $what"
    sleep 0.05
  done
}
