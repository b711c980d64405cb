#!/usr/bin/env bash
# Shows at full size that what arrives is what was there. A master, two source and two destination agents
# run as processes, content goes over loopback; each item prints what it measured and fails loudly. Run by
# hand (as root, 10 minutes and 60 GiB of disk); the small versions of all of it are in tests/fidelity.rs.
#
#   scripts/acceptance-fidelity.sh [--dir DIR] [--only LIST] [--scale S] [--store redis|embedded] [--ctl PROGRAM]
#
#   --dir DIR     work below it, on a real file system           [default: a new directory in /var/tmp]
#   --only LIST   of 1,2,3,4,5,6,7                               [default: all]
#   --scale S     of the tree of items 1 and 2, the 2 GiB of 4   [default: 1]
#   --ctl PROGRAM                                                [default: builds the release]
#
#   1  the tree of make-torture.sh, as root: rsync finds no difference, nor does compare-trees.py
#   2  the same with agents that are nobody: what the kernel allows, every difference named by its cause
#   3  /usr as a whole
#   4  a changed large file sends little; one that was interrupted by kill -9 is not sent again
#   5  -c on equal content with other times sends nothing and repairs them
#   6  each guard of --delete stops; the plain case deletes what rsync would
#   7  --manifest is good for b3sum; a flipped bit is named, and repaired alone
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
given=("$@") dir="" only="1,2,3,4,5,6,7" scale=1 store=redis ctl="" own_net=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dir) dir=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --scale) scale=$2; shift 2 ;;
    --store) store=$2; shift 2 ;;
    --ctl) ctl=$2; shift 2 ;;
    *) sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'; exit 2 ;;
  esac
done
chosen() { case ",$only," in *,"$1",*) return 0 ;; *) return 1 ;; esac; }

needs=(rsync jq python3 setpriv curl)
[ "$store" = embedded ] || needs+=(redis-server)
! chosen 7 || needs+=(b3sum)
for program in "${needs[@]}"; do
  command -v "$program" >/dev/null && continue
  case "$program" in
    b3sum) echo "b3sum is needed for item 7: cargo install b3sum" >&2 ;;
    *) echo "$program is needed: install it, e.g. apt-get install ${program/setpriv/util-linux}" >&2 ;;
  esac
  exit 1
done
[ "$(id -u)" = 0 ] || { echo "run it as root: it makes devices, owners and mounts" >&2; exit 1; }

# In a network of its own, so that what the loopback interface counts is ours alone.
if [ -z "${ACCEPTANCE_INSIDE:-}" ] && command -v ip >/dev/null && unshare --net true 2>/dev/null; then
  if [ -z "$ctl" ]; then (cd "$here/.." && cargo build --release --locked --quiet); fi
  ACCEPTANCE_INSIDE=1 exec unshare --net "$0" "${given[@]}"
fi
if [ -n "${ACCEPTANCE_INSIDE:-}" ]; then ip link set lo up; own_net=1; fi

if [ -z "$ctl" ]; then
  ctl="${CARGO_TARGET_DIR:-$here/../target}/release/ctl"
  [ -n "$own_net" ] || (cd "$here/.." && cargo build --release --locked --quiet)
fi
if [ -z "$dir" ]; then work=$(mktemp -d /var/tmp/fidelity.XXXXXX); else mkdir -p "$dir"; work=$(mktemp -d "$dir/fidelity.XXXXXX"); fi
case "$(stat -f -c %T "$work")" in
  tmpfs|overlayfs) echo "note: $work lies on $(stat -f -c %T "$work"), not on a disk" ;;
esac
chmod 755 "$work"
state="$work/state" src="$work/src" dst="$work/dst"
mkdir -p "$state" "$src" "$dst"
# Where nobody can run it.
cp "$ctl" "$state/ctl"
ctl="$state/ctl"

# --- processes --------------------------------------------------------------------------------------
declare -A agents=()
services=() mounts=() failed=0
end() {
  {
    for pid in "${agents[@]}" "${services[@]}"; do kill -9 "$pid" || true; done
    wait || true
  } 2>/dev/null
  for mount in "${mounts[@]}"; do umount -l "$mount" 2>/dev/null || true; done
  if [ "$failed" = 0 ]; then rm -rf "$work"; else
    rm -rf "$src" "$dst"
    echo "the logs are in $state"
  fi
}
trap end EXIT
fail() { failed=1; echo "FAILED: $*" >&2; [ ! -s "$state/last.err" ] || tail -n 20 "$state/last.err" >&2; exit 1; }
say() { printf '    %s\n' "$*"; }
item() { printf '\n%s  %s\n' "$1" "$2"; began=$SECONDS; }
done_in() { say "passed in $((SECONDS - began)) s"; }
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

mport=$(free_port)
export CTL_MASTER_URL="http://127.0.0.1:$mport"
printf 'listen: 127.0.0.1:%s\ndata_dir: %s/master\nheartbeat_interval: 500ms\nworker_heartbeat_timeout: 5s\nlease: 10s\n' \
  "$mport" "$state" >"$state/master.yml"
if [ "$store" = redis ]; then
  rport=$(free_port)
  redis-server --port "$rport" --bind 127.0.0.1 --dir "$state" --appendonly yes --save "" >"$state/redis.log" 2>&1 &
  services+=($!)
  printf 'redis: {host: 127.0.0.1, port: %s}\n' "$rport" >>"$state/master.yml"
fi
"$ctl" master --config "$state/master.yml" >>"$state/master.log" 2>&1 &
services+=($!)

start_agent() { # NAME PATHS [PREFIX…]
  local name=$1 paths=$2; shift 2
  printf 'master_url: %s\ndata_dir: %s\nheartbeat_interval: 500ms\nworkers:\n  - worker_id: %s\n    storage_paths: [%s]\n    network: {data_plane_endpoints: [{address: 127.0.0.1, port: 0}]}\n' \
    "$CTL_MASTER_URL" "$state/agents" "$name" "$paths" >"$state/$name.yml"
  "$@" "$ctl" agent --worker-id "$name" --config "$state/$name.yml" >>"$state/$name.log" 2>&1 &
  agents[$name]=$!
}
stop_agents() { # SIGNAL
  {
    for pid in "${agents[@]}"; do kill "-$1" "$pid" || true; done
    for pid in "${agents[@]}"; do wait "$pid" || true; done
  } 2>/dev/null
  agents=()
}
start_agents() { # [PREFIX…]
  for name in s1 s2; do start_agent "$name" "$src, /usr" "$@"; done
  for name in d1 d2; do start_agent "$name" "$dst" "$@"; done
  await 'all agents are there' agents_there
}
agents_there() {
  [ "$("$ctl" workers list -o json 2>/dev/null | jq '.active | length')" = 4 ]
}
await() { # WHAT COMMAND…
  local what=$1 until=$((SECONDS + 120)); shift
  until "$@"; do
    [ "$SECONDS" -lt "$until" ] || fail "waited in vain until $what"
    sleep 0.1
  done
}
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups)

# --- what is run and measured -----------------------------------------------------------------------
sync_exits() { # CODE SRC DST [OPTION…]; the progress is in last.json
  local want=$1 got=0; shift
  timeout 3600 "$ctl" sync submit "$@" --wait -o json --progress none >"$state/last.json" 2>"$state/last.err" || got=$?
  [ "$got" = "$want" ] || fail "ctl sync submit $* ended with $got, not $want: $(jq -c '{state, outcome, reason, error_counts}' "$state/last.json" 2>/dev/null)"
}
last() { jq -r "$1" "$state/last.json"; }
of_last() { # [, FIELD]…
  say "$(jq -c "{state, outcome, files_total, files_done, files_skipped, files_failed, sent_bytes, kept_bytes $*} | with_entries(select(.value != null))" "$state/last.json")"
}
wire() { awk '/^ *lo:/ { sub(/.*:/, ""); print $1 }' /proc/net/dev; }
percent() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", 100 * a / b }'; }
at_most() { # WHAT VALUE LIMIT
  awk -v v="$2" -v l="$3" 'BEGIN { exit !(v <= l) }' || fail "$1 is $2, more than $3"
}
rsync_finds_nothing() { # SRC DST [OPTION…]
  local a=$1 b=$2 out; shift 2
  for window in 0 -1; do
    out=$(rsync -aHAXSn --checksum --delete -i --modify-window="$window" "$@" "$a/" "$b/") || fail "rsync cannot compare $a and $b"
    [ -z "$out" ] || fail "rsync finds differences: $(head -n 20 <<<"$out")"
  done
  say "rsync -aHAXSn --checksum --delete -i: nothing"
}
trees_are_equal() {
  "$here/compare-trees.py" "$1" "$2" >"$state/differences" || fail "the trees differ: $(head -n 20 "$state/differences")"
  say "compare-trees.py: nothing"
}
large_file() { # PATH MIB
  python3 - "$1" "$2" <<'PY'
import os, sys
with open(sys.argv[1], "wb") as f:
    for _ in range(int(sys.argv[2])):
        f.write(os.urandom(1 << 20))
PY
}
fresh() { rm -rf "${src:?}/$1" "${dst:?}/$1"; mkdir -p "$src/$1"; }

start_agents

if chosen 1; then
  item 1 "the tree of make-torture.sh, as root"
  "$here/make-torture.sh" "$src/torture" "$scale"
  sync_exits 0 "$src/torture" "$dst/torture"
  of_last ', warnings: (.warnings // {} | map_values(.count))'
  # rsync takes no path of 4,096 bytes and more: what lies there is for compare-trees.py.
  rsync_finds_nothing "$src/torture" "$dst/torture" --exclude='level 08*'
  trees_are_equal "$src/torture" "$dst/torture"
  a=$(du -s -B1 "$src/torture" 2>/dev/null | cut -f1) b=$(du -s -B1 "$dst/torture" 2>/dev/null | cut -f1)
  say "du: $a and $b bytes"
  awk -v a="$a" -v b="$b" 'BEGIN { d = a - b; exit !((d < 0 ? -d : d) <= a / 100) }' || fail "du differs by more than 1 %"
  a=$(find "$src/torture" -links +1 ! -type d | wc -l) b=$(find "$dst/torture" -links +1 ! -type d | wc -l)
  say "names of files that have several: $a and $b"
  [ "$a" = "$b" ] && [ "$a" -gt 600 ] || fail "hard links differ"
  [ "$(find "$src/torture" -links +1 | wc -l)" = "$(find "$dst/torture" -links +1 | wc -l)" ] || fail "find -links +1 differs"
  sync_exits 0 "$src/torture" "$dst/torture"
  of_last
  [ "$(last .sent_bytes)" = 0 ] && [ "$(last .files_done)" = 0 ] || fail "the second run had something to do"
  done_in
fi

if chosen 2; then
  item 2 "the same by agents that are nobody"
  stop_agents TERM
  # Paths of 4,096 bytes and more can't be removed by everybody's chmod -R: they are root's job.
  mkdir -p "$src/nobody" "$dst/nobody" "$dst/from-root"
  chown 65534:65534 "$src/nobody" "$dst/nobody" "$dst/from-root"
  "${nobody[@]}" "$here/make-torture.sh" "$src/nobody" "$scale" 2>"$state/left-out"
  say "nobody could not make $(wc -l <"$state/left-out") kinds of things"
  [ -d "$src/torture" ] || "$here/make-torture.sh" "$src/torture" "$scale"
  start_agents "${nobody[@]}"
  for tree in nobody torture; do
    to=$dst/nobody; [ "$tree" = nobody ] || to=$dst/from-root
    sync_exits 23 "$src/$tree" "$to"
    of_last ', error_counts, warnings: (.warnings // {} | map_values(.count))'
    # Only root can make devices.
    [ "$(last '.errors | map(select(.errno != "EACCES" and .operation != "make special file")) | length')" = 0 ] ||
      fail "errors that nothing explains: $(last '.errors')"
    "$here/compare-trees.py" "$src/$tree" "$to" >"$state/differences" || true
    say "differences: $(cut -f1 "$state/differences" | sort | uniq -c | tr -s ' \n' ' ')"
    ! grep -E '^(extra|type|length|content|target|linked|mtime|acl|holes)' "$state/differences" | head -n 5 | grep . || fail "differences that nothing explains"
    noted() { last "[.warnings // {} | to_entries[] | select(.key | test(\"$1\")) | .value.count] | add // 0"; }
    for kind in owner group xattr mode; do
      there=$(grep -c "^$kind" "$state/differences" || true)
      [ "$there" = 0 ] || [ "$(noted "$kind|setuid|set-uid|attribute|owner")" -gt 0 ] || fail "$there differences of $kind, and no warning names them"
    done
  done
  stop_agents TERM
  start_agents
  done_in
fi
rm -rf "${src:?}"/* "${dst:?}"/*

if chosen 3; then
  item 3 "/usr"
  sync_exits 0 /usr "$dst/usr"
  of_last
  rsync_finds_nothing /usr "$dst/usr"
  done_in
  rm -rf "$dst/usr"
fi

if chosen 4; then
  item 4 "a large file of which there is an older version, or the half"
  mib=$(awk -v s="$scale" 'BEGIN { m = int(2048 * s); print (m < 128 ? 128 : m) }') size=$((mib << 20))
  fresh delta
  large_file "$src/delta/file" "$mib"
  sync_exits 0 "$src/delta" "$dst/delta"
  python3 - "$src/delta/file" "$mib" <<'PY'
import os, random, sys
mib = int(sys.argv[2])
with open(sys.argv[1], "r+b") as f:
    for block in random.Random(1).sample(range(mib), max(1, mib // 100)):
        f.seek(block << 20)
        f.write(os.urandom(1 << 20))
PY
  before=$(wire)
  sync_exits 0 "$src/delta" "$dst/delta"
  on_wire=$(($(wire) - before))
  of_last
  say "1 % of its blocks changed: $(percent "$(last .sent_bytes)" "$size") % sent${own_net:+, $(percent "$on_wire" "$size") % on the wire with everything that was said}"
  at_most "the percentage sent" "$(percent "$(last .sent_bytes)" "$size")" 2.99
  [ -z "$own_net" ] || at_most "the percentage on the wire" "$(percent "$on_wire" "$size")" 2.99
  cmp "$src/delta/file" "$dst/delta/file" || fail "the file is not identical"

  fresh half
  large_file "$src/half/file" "$mib"
  before=$(wire)
  id=$("$ctl" sync submit "$src/half" "$dst/half" --chunk-size-mb 16 -q)
  half_there() { [ "$("$ctl" sync status "$id" -o json | jq .transferred_bytes)" -ge $((size / 2)) ]; }
  until half_there; do :; done
  stop_agents 9
  first=$(($(wire) - before))
  "$ctl" sync status "$id" -o json >"$state/at-kill.json"
  [ "$(jq -r .state "$state/at-kill.json")" != COMPLETED ] || fail "it was over before it could be killed"
  before=$(wire)
  start_agents
  timeout 600 "$ctl" sync wait "$id" -o json --progress none >"$state/last.json" 2>"$state/last.err" || fail "the sync did not survive kill -9"
  second=$(($(wire) - before))
  of_last
  say "kill -9 of all agents at $(percent "$(jq .transferred_bytes "$state/at-kill.json")" "$size") %${own_net:+: $(percent "$first" "$size") % on the wire before, $(percent "$second" "$size") % after}"
  if [ -n "$own_net" ]; then
    at_most "the percentage on the wire in the second run" "$(percent "$second" "$size")" 60
  else
    at_most "the percentage sent in both runs" "$(percent "$(last .sent_bytes)" "$size")" 110
  fi
  cmp "$src/half/file" "$dst/half/file" || fail "the file is not identical"

  # ctl copy has no master that remembers: what is used up is the part file alone.
  rm -rf "$dst/half"
  XDG_STATE_HOME=$state "$ctl" copy "$src/half" "$dst/half" --chunk-size-mb 16 -q >"$state/copy.log" 2>&1 &
  copy=$!
  part_half() { [ "$(find "$dst/half" -name '.ctl-*.part' -printf '%b\n' 2>/dev/null | awk '{ s += $1 } END { print s * 512 + 0 }')" -ge $((size / 2)) ]; }
  until part_half; do kill -0 "$copy" 2>/dev/null || fail "ctl copy was over before it could be killed"; done
  kill -9 "$copy"
  wait "$copy" 2>/dev/null || true
  XDG_STATE_HOME=$state "$ctl" copy "$src/half" "$dst/half" --chunk-size-mb 16 -o json >"$state/last.json" 2>"$state/last.err" || fail "ctl copy did not end well"
  of_last
  say "ctl copy killed at half, and run again: $(percent "$(last .sent_bytes)" "$size") % sent"
  at_most "the percentage sent by the second ctl copy" "$(percent "$(last .sent_bytes)" "$size")" 59.9
  cmp "$src/half/file" "$dst/half/file" || fail "the file is not identical"
  done_in
  rm -rf "${src:?}"/* "${dst:?}"/*
fi

if chosen 5; then
  item 5 "-c on equal content with other times"
  "$here/make-tree.sh" "$src/equal" 0.1
  sync_exits 0 "$src/equal" "$dst/equal"
  find "$dst/equal" -exec touch -h -d '2001-02-03 04:05:06.789' {} +
  before=$(wire)
  sync_exits 0 "$src/equal" "$dst/equal" -c
  on_wire=$(($(wire) - before))
  of_last ', actions'
  say "$(last .total_bytes) bytes compared, $(last .sent_bytes) sent${own_net:+, $on_wire bytes on the wire with everything that was said}"
  [ "$(last .sent_bytes)" = 0 ] || fail "content was sent"
  trees_are_equal "$src/equal" "$dst/equal"
  done_in
  rm -rf "${src:?}"/* "${dst:?}"/*
fi

if chosen 6; then
  item 6 "the guards of --delete"
  snapshot() { find "$1" -printf '%P\t%y\t%s\t%T@\n' | sort; }
  guard_stops() { # WHAT CODE SRC DST [OPTION…]
    local what=$1 code=$2 to=$4; shift 2
    snapshot "$to" >"$state/before"
    sync_exits "$code" "$@"
    snapshot "$to" >"$state/after"
    diff "$state/before" "$state/after" >"$state/deleted" || fail "$what: the destination changed: $(head "$state/deleted")"
    say "$what: exit $code, nothing deleted; $(last '.reason // (.error_counts | tostring)')"
  }
  hundred() { for i in $(seq 100); do echo "$i" >"$1/f$i"; done; }

  mkdir -p "$src/mounted"
  mount -t tmpfs -o mode=755 none "$src/mounted"
  mounts+=("$src/mounted")
  hundred "$src/mounted"
  sync_exits 0 "$src/mounted" "$dst/mounted" --delete
  umount "$src/mounted"
  guard_stops "the source is not mounted" 8 "$src/mounted" "$dst/mounted" --delete
  echo "is it mounted?" >"$src/mounted/README"
  cp -a "$src/mounted/README" "$dst/mounted/README"
  guard_stops "… and something lies under it" 8 "$src/mounted" "$dst/mounted" --delete --max-delete-percent 100

  fresh emptied
  hundred "$src/emptied"
  sync_exits 0 "$src/emptied" "$dst/emptied" --delete
  rm "$src/emptied"/*
  touch -r "$dst/emptied" "$src/emptied"
  guard_stops "the source was emptied" 8 "$src/emptied" "$dst/emptied" --delete --max-delete-percent 100
  sync_exits 0 "$src/emptied" "$dst/emptied" --delete --max-delete-percent 100 --allow-empty-source
  [ -z "$(ls -A "$dst/emptied")" ] || fail "--allow-empty-source did not delete"
  say "--allow-empty-source: deleted"

  fresh half
  hundred "$src/half"
  sync_exits 0 "$src/half" "$dst/half" --delete
  for i in $(seq 51); do rm "$src/half/f$i"; done
  touch -r "$dst/half" "$src/half"
  guard_stops "51 % are gone" 25 "$src/half" "$dst/half" --delete
  for i in $(seq 5 51); do cp -a "$dst/half/f$i" "$src/half/"; done
  touch -r "$dst/half" "$src/half"
  guard_stops "--max-delete 3, and 4 are gone" 25 "$src/half" "$dst/half" --delete --max-delete 3

  fresh closed
  hundred "$src/closed"
  mkdir "$src/closed/folder"
  echo inside >"$src/closed/folder/file"
  chown -R 65534:65534 "$src/closed"
  mkdir "$dst/closed"
  chown 65534:65534 "$dst/closed"
  stop_agents TERM
  start_agents "${nobody[@]}"
  sync_exits 0 "$src/closed" "$dst/closed" --delete
  rm "$src/closed/f1"
  chmod 000 "$src/closed/folder"
  touch -r "$dst/closed" "$src/closed"
  chmod 000 "$dst/closed/folder"
  guard_stops "a folder of the source can't be read" 23 "$src/closed" "$dst/closed" --delete
  stop_agents TERM
  start_agents

  "$here/make-tree.sh" "$src/plain" 0.02
  sync_exits 0 "$src/plain" "$dst/plain" --delete
  rm -rf "$src/plain/medium" "$src/plain/small/1" "$src/plain/links/to large"
  mkdir -p "$dst/plain/extra/deeper"
  echo extra >"$dst/plain/extra/deeper/file"
  ln -s "$src" "$dst/plain/extra/out"
  ln "$dst/plain/large" "$dst/plain/one more name"
  rsync -an --delete -i "$src/plain/" "$dst/plain/" | sed -n 's/^\*deleting *//p' | sed 's:/$::' | sort >"$state/rsync-deletes"
  sync_exits 0 "$src/plain" "$dst/plain" --delete --record
  "$ctl" sync files "$(last .request_id)" --state deleted -o json >"$state/deleted.json"
  jq -rs 'if (.[0] | type) == "array" then .[0] else . end | .[] | .path' "$state/deleted.json" | sort >"$state/ctl-deletes"
  diff "$state/rsync-deletes" "$state/ctl-deletes" >"$state/differences" || fail "deleted something else than rsync would: $(head -n 20 "$state/differences")"
  say "the plain case deleted the $(wc -l <"$state/ctl-deletes") entries that rsync --delete -n names"
  rsync_finds_nothing "$src/plain" "$dst/plain"
  done_in
  rm -rf "${src:?}"/* "${dst:?}"/*
fi

if chosen 7; then
  item 7 "manifest, a flipped bit"
  "$here/make-tree.sh" "$src/listed" 0.1
  large_file "$src/listed/one" 333
  large_file "$src/listed/two" 300
  sync_exits 0 "$src/listed" "$dst/listed" --chunk-size-mb 16 --manifest "$state/manifest"
  id=$(last .request_id)
  # Not lines: there are names with line breaks.
  files=$(find "$src/listed" -type f -printf . | wc -c)
  # b3sum has no way to write names that are not UTF-8: those are for ctl sync verify alone.
  others=$(grep -vc '^#' "$state/manifest.others")
  say "$(wc -l <"$state/manifest") lines for $files files, and $others with names that b3sum refuses"
  [ "$(($(wc -l <"$state/manifest") + others))" = "$files" ] || fail "not every file is in the manifest"
  (cd "$dst/listed" && b3sum --check --quiet "$state/manifest") || fail "b3sum --check does not pass"
  say "b3sum --check passes for all lines of the manifest"
  "$ctl" sync verify "$id" >"$state/verify" 2>&1 || fail "verify of a right destination: $(cat "$state/verify")"
  python3 - "$dst/listed/one" <<'PY'
import os, sys
path = sys.argv[1]
times = os.stat(path)
with open(path, "r+b") as f:
    f.seek(123_456_789)
    byte = f.read(1)[0]
    f.seek(123_456_789)
    f.write(bytes([byte ^ 16]))
os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
PY
  code=0
  "$ctl" sync verify "$id" >"$state/verify" 2>&1 || code=$?
  say "verify of a flipped bit: exit $code: $(grep -w one "$state/verify" | head -n 1)"
  [ "$code" != 0 ] && grep -qw one "$state/verify" && ! grep -qwE 'two|small|medium|large' "$state/verify" || fail "verify names something else: $(head "$state/verify")"
  code=0
  "$ctl" sync verify --manifest "$state/manifest" "$dst/listed" >"$state/verify" 2>&1 || code=$?
  [ "$code" != 0 ] && grep -qw one "$state/verify" || fail "verify by the manifest alone does not name it: $(head "$state/verify")"
  sync_exits 0 "$src/listed" "$dst/listed" --chunk-size-mb 16 --verify readback
  of_last ', verified_files, repaired_files'
  [ "$(last .repaired_files)" = 1 ] || fail "one file is to be repaired"
  at_most "the bytes sent for one range" "$(last .sent_bytes)" $((16 << 20))
  cmp "$src/listed/one" "$dst/listed/one" || fail "it is not repaired"
  "$ctl" sync verify "$id" >"$state/verify" 2>&1 || fail "still not right: $(cat "$state/verify")"
  done_in
fi

echo
echo "all of $only passed"
