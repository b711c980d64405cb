#!/usr/bin/env bash
# What a sync to several destinations takes, and what comes of destinations that die or lose a byte, between
# hosts made of network namespaces (netlab.sh): one source and four destinations, each with one NIC and the
# destinations with a disk each (a tmpfs in a mount namespace of the host, at the same path on all). Prints
# medians and ratios, and PASS or FAIL for each row. Needs root, python3, 6 GiB of memory for the data, and a
# quiet machine.
#
#   scripts/acceptance-destinations.sh --ctl RELEASE_BINARY [--rounds 5] [--row many|killed|damaged]
#     [--dir DIR] [--unit 1000] [--lease 2s] [--chunk MIB]
#
#   many      paired rounds, one destination and four: at most 1.25 times the time; bytes out of the NIC of the
#             source at most 1.15 times the data; memory of each receiving agent under 256 MiB
#   killed    the agent of one of four is killed at half: the others end within 1.5 times the time of a run
#             without that; `ctl sync retry --failed-only` completes it, and sends only what it lacks. Also where
#             the agent is started again at once: all complete
#   damaged   a byte that the first destination holds flips before it is sent on (of a file, of the part file of a
#             large one; with and without --verify readback): the next one is right, the damage is counted
#             and named, the first one is not COMPLETED with it
#
# The data is a file of 1 GiB and 10,000 of 4 KiB. --unit says how many Mb/s stand for 1 Gb/s (and scales the
# data), for machines that cannot do 8 Gb/s. --lease is the lease of the master in the row `killed`: work that
# the killed agent holds is given to others only after it, and with that of the default (30s) this is longer than
# the whole copy. --chunk is the --chunk-size-mb of the syncs in `many` and `killed` (default: that of the program).
set -euo pipefail

ctl="" rounds=5 rows=() dir=/dev/shm unit=1000 short_lease=2s chunk=()
while [ $# -gt 0 ]; do
  case "$1" in
    --ctl) ctl=$(realpath "$2"); shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --row) rows+=("$2"); shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --unit) unit=$2; shift 2 ;;
    --lease) short_lease=$2; shift 2 ;;
    --chunk) chunk=(--chunk-size-mb "$2"); shift 2 ;;
    *) sed -n '2,26p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
[ -x "$ctl" ] || { echo "--ctl must name the program to be measured" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network and mount namespaces need root" >&2; exit 1; }
for program in python3 nsenter unshare; do
  command -v "$program" >/dev/null || { echo "\`$program\` is missing" >&2; exit 1; }
done
[ "${#rows[@]}" -gt 0 ] || rows=(many killed damaged)
for row in "${rows[@]}"; do
  case "$row" in many | killed | damaged) ;; *) echo "there is no row \`$row\`" >&2; exit 2 ;; esac
done

here=$(cd "$(dirname "$0")" && pwd)
export NETLAB="dst-$$"
work=$(mktemp -d "$dir/destinations.XXXXXX")
src=$work/src dst=$work/dst state=$work/state
lab() { "$here/netlab.sh" "$@"; }
stop() {
  # Also the processes that hold the mount namespaces, and with them the disks of the hosts.
  end
  lab down
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
. "$here/acceptance-common.sh"

# --- services ---------------------------------------------------------------------------------------
declare -A agent=() disk=()
master=""

on_master() { CTL_MASTER_URL=http://10.77.0.254:8888 lab exec mgmt "$ctl" "$@"; }
tree() { echo "/proc/${disk[$1]}/root$dst"; }

# A process that holds the mounts of a host, so that its disk survives its agent.
# $! must be the program itself here and below, so `lab exec` is of no use.
add_disk() {
  # shellcheck disable=SC2016
  ip netns exec "$NETLAB-h$1" unshare --mount --propagation private \
    sh -c 'mount -t tmpfs none "$1" && touch "$2" && exec sleep infinity' - "$dst" "$state/disk$1" &
  disk[$1]=$!
  await 10 "the disk of h$1" test -e "$state/disk$1"
}

start_agent() {
  local run=(ip netns exec "$NETLAB-h$1")
  [ -z "${disk[$1]:-}" ] || run=(nsenter "--target=${disk[$1]}" --mount --net)
  "${run[@]}" "$ctl" agent --worker-id "h$1" --config "$state/agents.yml" 2>>"$work/agent.h$1.log" &
  agent[$1]=$!
}

storages_are_known() {
  on_master storage list -o json 2>/dev/null | python3 -c '
import json, sys
all = json.load(sys.stdin)["storages"]
count = lambda path: sum(s["path"] == path for s in all)
is_known = (count(sys.argv[1]), count(sys.argv[2])) == (1, int(sys.argv[3]))
sys.exit(not is_known or any(s.get("not_compared_with") for s in all))' "$src" "$dst" "$1" 2>/dev/null
}

# serve LEASE HOST…: a master, an agent at the source (host 1), and one with a disk on each of the hosts.
serve() {
  local lease=$1 host
  shift
  mkdir -p "$src" "$dst" "$state"
  rm -f "$work"/*.log
  {
    printf 'listen: 10.77.0.254:8888\ninsecure: true\ndata_dir: %s\n' "$state/master"
    [ "$lease" = default ] ||
      printf 'heartbeat_interval: 500ms\nworker_heartbeat_timeout: %s\nlease: %s\n' "$lease" "$lease"
  } >"$state/master.yml"
  {
    printf 'master_url: http://10.77.0.254:8888\ndata_dir: %s\n' "$state/agents"
    [ "$lease" = default ] || printf 'heartbeat_interval: 500ms\n'
    printf 'workers:\n'
    for host in 1 "$@"; do
      printf '  - worker_id: h%s\n    storage_paths: [%s]\n    network: { data_plane_endpoints: [{iface: nic1, address: 10.77.1.%s}] }\n' \
        "$host" "$([ "$host" = 1 ] && echo "$src" || echo "$dst")" "$host"
    done
  } >"$state/agents.yml"
  ip netns exec "$NETLAB-mgmt" "$ctl" master --config "$state/master.yml" 2>>"$work/master.log" &
  master=$!
  for host in "$@"; do add_disk "$host"; done
  for host in 1 "$@"; do start_agent "$host"; done
  await 60 "the storages of $*" storages_are_known $#
}

end() {
  [ -n "$master" ] || return 0
  kill -CONT "${agent[@]}" 2>/dev/null || true
  kill "$master" "${agent[@]}" "${disk[@]}" 2>/dev/null || true
  wait "$master" "${agent[@]}" "${disk[@]}" 2>/dev/null || true
  agent=() disk=() master=""
  rm -rf "$state"
}

# data MiB FILES: a large file, and files of 4 KiB in directories of 100.
data() {
  rm -rf "$src"
  mkdir -p "$src"
  python3 - "$src" "$1" "$2" <<'PY'
import os, sys
root, mib, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(f"{root}/large", "wb") as large:
    for _ in range(mib):
        large.write(os.urandom(1 << 20))
for n in range(files):
    if n % 100 == 0:
        os.mkdir(f"{root}/{n // 100:03}")
    with open(f"{root}/{n // 100:03}/{n:05}", "wb") as small:
        small.write(os.urandom(4096))
PY
}
size() { find "$1" -type f ! -name '.ctl-*' -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f", sum }'; }

# --- syncs ------------------------------------------------------------------------------------------
# submit ID TO [OPTIONS…]
submit() {
  local id=$1 to=$2
  shift 2
  on_master sync submit "h1:$src" "$to:$dst" --id "$id" --quiet "$@" >/dev/null 2>"$work/submit.log" ||
    die "$(cat "$work/submit.log")"
}

# ask ID EXPRESSION: of the document `s` of a sync; `of["h2"]` is its destination of h2.
ask() {
  on_master sync status "$1" -o json | python3 -c '
import json, sys
from datetime import datetime
s = json.load(sys.stdin)
s = s[0] if isinstance(s, list) else s.get("syncs", [s])[0]
of = {worker: one for one in s.get("destinations", []) for worker in one["workers"]}
final = lambda one: one["state"] in ("COMPLETED", "FAILED", "CANCELLED")
complete = lambda one: (one["state"], one.get("outcome")) == ("COMPLETED", "full")
def at(name):
    return datetime.fromisoformat(s[name].replace("Z", "+00:00")).timestamp()
print(eval(sys.argv[1]))' "$2"
}
holds() { [ "$(ask "$1" "bool($2)")" = True ]; }

# The seconds from the submission of a sync to its end.
seconds_of() { ask "$1" '"%.3f" % (at("ended_at") - at("submitted_at"))'; }

# same HOST: the tree of a host is that of the source.
same() {
  "$here/compare-trees.py" "$src" "$(tree "$1")" >"$work/differences" && echo same || {
    head -n 5 "$work/differences" >&2
    echo "$(wc -l <"$work/differences") differences"
  }
}

# --- rows -------------------------------------------------------------------------------------------
# run TO HOST…: one sync; the seconds to its end, the bytes out of the source's NIC, and the largest peak of
# the memory of the receiving agents in MiB are added to the arrays `took`, `out`, `peaks`.
run() {
  local to=$1 before after since host
  shift
  serve default "$@"
  before=$(lab bytes 1 1)
  since=$(date +%s.%N)
  submit run "$to" --wait "${chunk[@]}"
  took+=("$(awk -v a="$since" -v b="$(date +%s.%N)" 'BEGIN { printf "%.3f", b - a }')")
  after=$(lab bytes 1 1)
  out+=($((${after% *} - ${before% *})))
  peaks+=("$(for host in "$@"; do awk '/^VmHWM/ { print int($2 / 1024) }' "/proc/${agent[$host]}/status"; done |
    sort -n | tail -n 1)")
  for host in "$@"; do
    [ "$(same "$host")" = same ] || { is "the copy at h$host" differs same; }
  done
  end
}

many() {
  local one=() four=() took out peaks one_out=() four_out=() memory=() whole
  data "$((1024 * unit / 1000))" "$((10000 * unit / 1000))"
  whole=$(size "$src")
  lab up --hosts 5 --nics "${unit}m"
  for _ in $(seq "$rounds"); do
    took=() out=() peaks=()
    run h2 2
    run 'h2,h3,h4,h5' 2 3 4 5
    one+=("${took[0]}") four+=("${took[1]}") memory+=("${peaks[@]}")
    one_out+=("${out[0]}") four_out+=("${out[1]}")
  done
  lab down
  echo "$whole bytes over $unit Mb/s: one destination ${one[*]} s, four ${four[*]} s"
  echo "  out of the source's NIC: one ${one_out[*]}, four ${four_out[*]} bytes; peak memory ${memory[*]} MiB"
  at_most "four destinations against one" "$(ratio "$(median_of "${four[@]}")" "$(median_of "${one[@]}")")" 1.25
  at_most "bytes out of the source against the data" "$(ratio "$(median_of "${four_out[@]}")" "$whole")" 1.15
  at_most "peak memory of a receiving agent, in MiB" "$(printf '%s\n' "${memory[@]}" | sort -n | tail -n 1)" 255
}

# A sync to four, of which the agent of h5 is killed when it has half of its bytes, and some whole files.
kill_at_half() { # ID
  local bytes
  bytes=$(size "$src")
  submit "$1" 'h2,h3,h4,h5' "${chunk[@]}"
  await 600 "h5 has half of it" holds "$1" \
    "'h5' in of and of['h5']['transferred_bytes'] >= $bytes / 2 and of['h5']['files_done'] > 0"
  kill -9 "${agent[5]}"
  wait "${agent[5]}" 2>/dev/null || true
}

killed() {
  local round host times whole held files undisturbed slowest again
  data "$((1024 * unit / 1000))" "$((10000 * unit / 1000))"
  whole=$(size "$src")
  lab up --hosts 5 --nics "${unit}m"
  for round in $(seq "$rounds"); do
    serve "$short_lease" 2 3 4 5
    submit plain 'h2,h3,h4,h5' --wait "${chunk[@]}"
    undisturbed=$(seconds_of plain)
    end

    serve "$short_lease" 2 3 4 5
    kill_at_half half
    await 900 "the others end" holds half 'all(final(of[h]) for h in ("h2", "h3", "h4"))'
    times=()
    for host in 2 3 4; do times+=("$(seconds_of "half@h$host")"); done
    slowest=$(printf '%s\n' "${times[@]}" | sort -n | tail -n 1)
    echo "killed at half, round $round: without that $undisturbed s; h2, h3, h4: ${times[*]} s"
    at_most "the others against a run without that" "$(ratio "$slowest" "$undisturbed")" 1.5
    for host in 2 3 4; do
      is "h$host is complete" "$(ask half "complete(of[\"h$host\"])")" True
      is "the copy at h$host" "$(same "$host")" same
    done
    # It waits for its worker. An operator who does not expect it back gives the destination up.
    is "the killed one has not ended, and is listed first" \
      "$(ask half 's["state"], final(of["h5"]), s["destinations"][0]["workers"]')" "('PROGRESS', False, ['h5'])"
    held=$(ask half@h5 's["transferred_bytes"]')
    on_master sync cancel half@h5 --quiet >/dev/null
    await 60 "the whole ends" holds half 'final(s)'
    is "the whole ended" "$(ask half 's["state"], s["outcome"], "half@h5" in s["reason"]')" \
      "('FAILED', 'partial', True)"
    files=$(find "$(tree 5)" -type f ! -name '.ctl-*' | wc -l)
    start_agent 5
    again=$(on_master sync retry half --failed-only --quiet 2>/dev/null)
    await 600 "the retry ends" holds "$again" 'final(s)'
    is "the retry is complete, and of h5 alone" \
      "$(ask "$again" 'complete(s), s["destination_workers"], s["files_failed"]')" "(True, ['h5'], 0)"
    is "the copy at h5" "$(same 5)" same
    is "files that h5 had and the retry skipped" "$(ask "$again" 's["files_skipped"]')" "$files"
    at_most "bytes that the retry sent ($held of $whole were held)" "$(ask "$again" 's["sent_bytes"]')" $((whole - held))
    end

    serve "$short_lease" 2 3 4 5
    kill_at_half returns
    start_agent 5
    await 900 "all end" holds returns 'final(s)'
    echo "started again at once, round $round: $(seconds_of returns) s"
    is "all are complete" "$(ask returns 'complete(s), [complete(of[f"h{n}"]) for n in (2, 3, 4, 5)]')" \
      "(True, [True, True, True, True])"
    for host in 2 3 4 5; do is "the copy at h$host" "$(same "$host")" same; done
    end
  done
  lab down
}

# flip PATH OFFSET: changes one byte, and no time.
flip() {
  python3 - "$1" "$2" <<'PY'
import os, sys
path, offset = sys.argv[1], int(sys.argv[2])
times = os.stat(path)
with open(path, "r+b") as file:
    file.seek(offset)
    byte = file.read(1)[0]
    file.seek(offset)
    file.write(bytes([byte ^ 1]))
os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
PY
}

has_part() { find "$(tree "$1")" -maxdepth 1 -name '.ctl-*.part' | grep .; }

# A sync to h2 and h3. h3 is paused before the agent of the source, which is suspended, can begin: all comes to h2
# first. Then h2 is paused, so that it does not end before the damage is found; what it holds can be sent on.
damage() { # NAME WHAT OPTIONS…
  local id=$1 what=$2 path entry name
  shift 2
  serve default 2 3
  kill -STOP "${agent[1]}"
  submit "$id" 'h2,h3' --chunk-size-mb 1 --bwlimit 12MiB/s "$@"
  on_master sync pause "$id@h3" --quiet >/dev/null
  kill -CONT "${agent[1]}"
  case "$what" in
    file)
      entry=001/00150 path=$(tree 2)/001/00150
      await 60 "h2 has $entry" cmp -s "$src/$entry" "$path"
      ;;
    part)
      await 60 "h2 has a part file" has_part 2 >/dev/null
      entry=large path=$(has_part 2)
      await 60 "h2 has the first range" cmp -s -n $((1 << 20)) "$src/large" "$path"
      ;;
  esac
  on_master sync pause "$id@h2" --quiet >/dev/null
  flip "$path" 1000
  on_master sync resume "$id@h3" --quiet >/dev/null
  on_master sync set "$id" --bwlimit none --quiet >/dev/null
  await 120 "h3 has all" holds "$id@h3" 'final(s)'
  is "the damage is counted and named while h2 is paused" "$(ask "$id@h2" \
    "[w['count'] for why, w in s.get('warnings', {}).items() if 'damaged' in why and '$entry' in str(w)]")" "[1]"
  on_master sync resume "$id@h2" --quiet >/dev/null
  await 300 "it ends" holds "$id" 'final(s)'
  echo "damaged $what at h2, ${*:-without --verify readback}:"
  on_master sync status "$id@h2" | sed 's/^/  | /'
  is "h3 is complete" "$(ask "$id" 'complete(of["h3"])')" True
  is "the copy at h3" "$(same 3)" same
  if [ "$(ask "$id" 'of["h2"]["state"]')" = COMPLETED ]; then is "the COMPLETED copy at h2" "$(same 2)" same
  else echo "PASS  h2 is not COMPLETED"; fi
  for name in "$id" "$id@h2"; do
    is "lines of ctl sync status $name that name the damage" \
      "$(on_master sync status "$name" | grep -c "content was damaged .*$entry")" 1
  done
  end
}

damaged() {
  data 96 300
  lab up --hosts 3 --nics "${unit}m"
  for what in file part; do
    damage "$what-readback" "$what" --verify readback
    damage "$what-plain" "$what"
  done
  lab down
}

for row in "${rows[@]}"; do "$row"; done
[ -z "$failed" ]
