#!/usr/bin/env bash
# Searches with the model test (tests/model): random trees, random edits of both sides, random options, and after
# every sync the destination is compared with what a plain model predicts. Each case has a seed. A seed that
# fails is printed with the smallest case that fails alike; the same script runs it again, as long as the test
# is the same.
#
#   scripts/model.sh [--minutes M] [--seed N] [--jobs N]
#   scripts/model.sh --seed N --cases 1
#
#   --minutes M   ends after so many minutes            [default: 10, or what the cases need]
#   --seed N      the seed of the first case            [default: from the clock]
#   --cases N     ends after so many cases, in one job
#   --jobs N      processes at a time                   [default: as many as there are cores]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
minutes="" seed=$(date +%s) cases="" jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) minutes=$2; shift 2 ;;
    --seed) seed=$2; shift 2 ;;
    --cases) cases=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    *) sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'; exit 2 ;;
  esac
done
case "${minutes:-1}${cases:-1}$seed$jobs" in
  *[!0-9]*) echo "--minutes, --seed, --cases and --jobs take whole numbers" >&2; exit 2 ;;
esac
if [ -n "$cases" ]; then jobs=1; elif [ -z "$minutes" ]; then minutes=10; fi

cd "$here/.."
built=$(cargo test --locked --test model --no-run --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep '/model-' | tail -1)
[ -x "$built" ] || { echo "the test cannot be built; see: cargo test --test model --no-run" >&2; exit 1; }

work=$(mktemp -d)
pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
echo "seeds from $seed on, $jobs at a time"
for ((job = 0; job < jobs; job++)); do
  env LONGHAUL_MODEL_SEED=$((seed + job)) LONGHAUL_MODEL_STEP="$jobs" \
    ${cases:+LONGHAUL_MODEL_CASES="$cases"} ${minutes:+LONGHAUL_MODEL_SECONDS="$((minutes * 60))"} \
    "$built" --nocapture --test-threads=1 >"$work/$job" 2>&1 &
  pids+=($!)
done
bad=0
for pid in "${pids[@]}"; do wait "$pid" || bad=1; done
pids=()
grep -h '^seed \|^again: \|^minimal failing input' -A 40 "$work"/* | head -400 || true
grep -h ' cases from seed ' "$work"/* || { tail -n 60 "$work"/*; bad=1; }
if ((bad)); then
  kept=$(mktemp -d -t model-XXXXXX)
  cp "$work"/* "$kept"
  echo "it fails; all that was printed is in $kept" >&2
  exit 1
fi
echo "nothing found"
