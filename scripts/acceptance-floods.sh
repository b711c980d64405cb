#!/usr/bin/env bash
# What a sync takes while another address floods the master and the data ports of the agents, on hosts made of network
# namespaces (netlab.sh): a master, a source, a destination, and one that floods (flood.py): slow heads, idle
# connections, trickled bodies, fake heartbeats. Syncs without and with the flood take turns. Prints medians and their
# ratio, memory and CPU of the services, and PASS or FAIL for each row. Needs root, python3, and a quiet machine.
#
#   scripts/acceptance-floods.sh --ctl RELEASE_BINARY [--mode tls|insecure]... [--rounds 5] [--dir DIR] [--unit 200]
#     [--pace 200] [--beats 2000]
#
#   tls       the set-up of docs/security.md; the flood has a token of an operator, which its bodies need, and no other
#             credentials. At most 1.2 times the time
#   insecure  the same with `insecure: true`: each client has all rights, and the flood fills the registry of workers
#
# The data is a file of 192 MiB and 2,000 of 4 KiB. --unit is the speed of the NICs in Mb/s, so low that the network and
# not the CPU, which the flood shares, limits the sync. --pace is how many connections of each kind the flood opens again
# in a second, --beats how many heartbeats it sends in a second.
set -euo pipefail

ctl="" rounds=5 modes=() dir=/dev/shm unit=200 pace=200 beats=2000
while [ $# -gt 0 ]; do
  case "$1" in
    --ctl) ctl=$(realpath "$2"); shift 2 ;;
    --mode) modes+=("$2"); shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --unit) unit=$2; shift 2 ;;
    --pace) pace=$2; shift 2 ;;
    --beats) beats=$2; shift 2 ;;
    *) sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
[ -x "$ctl" ] || { echo "--ctl must name the program to be measured" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 1; }
command -v python3 >/dev/null || { echo "\`python3\` is missing" >&2; exit 1; }
[ "${#modes[@]}" -gt 0 ] || modes=(tls insecure)
for mode in "${modes[@]}"; do
  case "$mode" in tls | insecure) ;; *) echo "there is no mode \`$mode\`" >&2; exit 2 ;; esac
done

here=$(cd "$(dirname "$0")" && pwd)
export NETLAB="flood-$$"
work=$(mktemp -d "$dir/floods.XXXXXX")
src=$work/src dst=$work/dst state=$work/state
lab() { "$here/netlab.sh" "$@"; }
stop() {
  end
  lab down
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
pids=() flood=""
. "$here/acceptance-common.sh"

# --- services ---------------------------------------------------------------------------------------
# Over loopback, as the user of the master.
on_master() { CTL_MASTER_URL=http://127.0.0.1:8888 lab exec mgmt "$ctl" "$@"; }
leads() { on_master master status >/dev/null 2>&1; }
are_connected() { [ "$(on_master workers list --quiet 2>/dev/null | xargs)" = "$*" ]; }

# start NAME HOST COMMAND…: $! must be the program itself, so `lab exec` is of no use.
start() {
  local name=$1 host=$2
  shift 2
  HOME=$state ip netns exec "$NETLAB-$host" "$@" 2>>"$work/$name.log" &
  pids+=($!)
}

serve() { # MODE
  local mode=$1 scheme=https host storage
  mkdir -p "$dst" "$state"
  printf 'listen: [127.0.0.1:8888, 10.77.0.254:8888]\ndata_dir: %s\n' "$state/master" >"$state/master.yml"
  [ "$mode" = tls ] || { scheme=http && echo 'insecure: true' >>"$state/master.yml"; }
  start master mgmt "$ctl" master --config "$state/master.yml"
  await 30 "the master leads" leads
  for host in 1 2; do
    storage=$([ "$host" = 1 ] && echo "$src" || echo "$dst")
    {
      printf 'master_url: %s://10.77.0.254:8888\ndata_dir: %s\nworkers:\n' "$scheme" "$state/agent$host"
      printf '  - worker_id: h%s\n    storage_paths: [%s]\n    network: { data_plane_endpoints: [{iface: nic1, address: 10.77.1.%s}] }\n' \
        "$host" "$storage" "$host"
    } >"$state/agent$host.yml"
    local join=()
    if [ "$mode" = tls ]; then
      (umask 077 && on_master token create --join --worker "h$host" --path "$storage" >"$state/h$host.token" 2>/dev/null)
      join=(--join-token-file "$state/h$host.token")
    fi
    start "agent$host" "h$host" "$ctl" agent --worker-id "h$host" --config "$state/agent$host.yml" "${join[@]}"
  done
  await 60 "both agents are connected" are_connected h1 h2
  (umask 077 && on_master token create --role operator --scope "$work/flood" "$work/flood" >"$state/flood.token" 2>/dev/null)
}

end() {
  stop_flood
  [ "${#pids[@]}" -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  pids=()
  rm -rf "$state" "$dst"
}

start_flood() { # MODE
  local tls=()
  [ "$1" != tls ] || tls=(--tls --token "$state/flood.token")
  : >"$work/up"
  ip netns exec "$NETLAB-h3" nice -n 19 "$here/flood.py" --master 10.77.0.254:8888 "${tls[@]}" --pace "$pace" \
    --beats "$beats" --data 10.77.1.1:8889 --data 10.77.1.2:8889 --stats "$work/flood.json" \
    >>"$work/up" 2>>"$work/flood.log" &
  flood=$!
  await 300 "the flood is up" grep -q up "$work/up"
}

stop_flood() {
  [ -n "$flood" ] || return 0
  kill "$flood" 2>/dev/null || true
  wait "$flood" 2>/dev/null || true
  flood=""
}

# The memory of master and agents, and the most that each had, in MiB.
memory() {
  local pid
  for pid in "${pids[@]}"; do
    awk '/^VmRSS/ { now = $2 } /^VmHWM/ { most = $2 } END { printf "%d (%d) ", now / 1024, most / 1024 }' "/proc/$pid/status"
  done
}
# Seconds of CPU of master and agents until now.
cpu() { awk '{ sum += $14 + $15 } END { printf "%.2f", sum / 100 }' $(printf '/proc/%s/stat ' "${pids[@]}"); }

data() {
  mkdir -p "$src"
  python3 - "$src" <<'PY'
import os, sys
root = sys.argv[1]
with open(f"{root}/large", "wb") as large:
    for _ in range(192):
        large.write(os.urandom(1 << 20))
for n in range(2000):
    if n % 100 == 0:
        os.mkdir(f"{root}/{n // 100:03}")
    with open(f"{root}/{n // 100:03}/{n:05}", "wb") as small:
        small.write(os.urandom(4096))
PY
}

# sync ID: one sync; its seconds from submission to end are in `took`, those of CPU in `cost`.
sync() {
  local id=$1 before
  before=$(cpu)
  on_master sync submit "h1:$src" "h2:$dst/$id" --id "$id" --quiet --wait >/dev/null 2>"$work/submit.log" ||
    die "$(cat "$work/submit.log")"
  cost=$(awk -v a="$before" -v b="$(cpu)" 'BEGIN { printf "%.2f", b - a }')
  took=$(on_master sync status "$id" -o json | python3 -c '
import json, sys
from datetime import datetime
s = json.load(sys.stdin)
s = s[0] if isinstance(s, list) else s.get("syncs", [s])[0]
at = lambda name: datetime.fromisoformat(s[name].replace("Z", "+00:00")).timestamp()
print("%.3f" % (at("ended_at") - at("submitted_at")))')
}
same() { "$here/compare-trees.py" "$src" "$dst/$1" >"$work/differences" && echo same || wc -l <"$work/differences"; }

compare() { # MODE
  local mode=$1 round took cost quiet=() flooded=() quiet_cpu=() flooded_cpu=() before during=""
  serve "$mode"
  sync warm-up
  before=$(memory)
  for round in $(seq "$rounds"); do
    sync "without-$round"
    quiet+=("$took") quiet_cpu+=("$cost")
    start_flood "$mode"
    sync "with-$round"
    flooded+=("$took") flooded_cpu+=("$cost") during=$(memory)
    stop_flood
    is "the copy of round $round" "$(same "with-$round")" same
    rm -rf "$dst/without-$round" "$dst/with-$round"
  done
  echo "$mode: without the flood ${quiet[*]} s, with it ${flooded[*]} s"
  echo "  CPU of the services: without ${quiet_cpu[*]} s, with ${flooded_cpu[*]} s"
  echo "  what the last flood did: $(cat "$work/flood.json")"
  # Connections of the flood end within the time-outs for a request.
  sleep 30
  echo "  memory (most) of master, source, destination in MiB: before $before, in the last flood $during, 30 s after $(memory)"
  at_most "$mode: median with the flood against without" \
    "$(ratio "$(median_of "${flooded[@]}")" "$(median_of "${quiet[@]}")")" 1.2
  end
}

data
lab up --hosts 3 --nics "${unit}m"
for mode in "${modes[@]}"; do compare "$mode"; done
[ -z "$failed" ]
