#!/usr/bin/env bash
# Drives a real master with thousands of simulated agents over HTTP, on Redis and on the embedded store, and
# prints assignments and results a second, latencies, memory and CPU seconds. Loopback only; it stops
# by itself and leaves nothing behind. Never part of the tests.
#
#   scripts/bench-master.sh [--store redis|embedded|both] [--ctl BIN] [--load BIN] [--dir DIR]
#                           [--smoke] [-- OPTIONS OF THE LOAD]
#
#   --ctl BIN    the master's program   (default: a release build of this tree)
#   --load BIN   the agents' program    (default: a release build of benches/master)
#   --dir DIR    where the store's files are, on the disk that is to be measured (default: a new one in TMPDIR)
#   --smoke      small numbers, to see that it works
#
# Options of the load (`-- --help` lists all):
#   --workers N   registered workers (10000)    --members M  … of them in the sync (200)
#   --entries E   of the sync (10000000)        --batch B    entries in a task (64)
#   --ended N     syncs that have ended; times the list of them (0)
#   --rules N     filter rules of the sync (0)
#   --idle S      seconds of heartbeats only    --wakes N    small syncs     --seconds S  for the sync at most
set -euo pipefail

stores="redis embedded" ctl="" load="" dir="" options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --store) [ "$2" = both ] || stores=$2; shift 2 ;;
    --ctl) ctl=$2; shift 2 ;;
    --load) load=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --smoke) options+=(--workers 100 --members 20 --entries 100000 --idle 2 --wakes 3); shift ;;
    --) shift; options+=("$@"); break ;;
    *) sed -n '2,20p' "$0"; exit 2 ;;
  esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
[ -n "$ctl" ] || {
  cargo build --release --locked --quiet --bin ctl
  ctl="${CARGO_TARGET_DIR:-$root/target}/release/ctl"
}
[ -n "$load" ] || load=$(
  cargo build --release --locked --quiet --bench master --message-format json |
    python3 -c 'import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin)
         if m.get("executable") and m["target"]["name"] == "master"]
print(found[-1])'
)
# Each waiting poll is a connection, at both ends.
ulimit -n "$(ulimit -Hn)"

work=$(mktemp -d "${dir:-${TMPDIR:-/tmp}}/bench-master.XXXXXX")
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap 'stop; rm -rf "$work"' EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Repeats a question until it is answered, for at most ten seconds.
until_it() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "no answer: $*" >&2
  exit 1
}

for store in $stores; do
  state="$work/$store"
  mkdir "$state"
  port=$(free_port) redis_port="" extra=()
  echo "== $store"
  if [ "$store" = redis ]; then
    command -v redis-server >/dev/null || { echo "left out: redis-server is not installed"; continue; }
    redis_port=$(free_port)
    redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$state" --appendonly yes --save "" \
      --maxmemory-policy noeviction >"$state/redis.log" 2>&1 &
    pids+=($!)
    extra=(--store-pid $!)
    until_it redis-cli -p "$redis_port" ping
    printf 'redis: { host: 127.0.0.1, port: %s }\n' "$redis_port" >"$state/master.yml"
  fi
  printf 'listen: 127.0.0.1:%s\ndata_dir: %s\n' "$port" "$state/master" >>"$state/master.yml"
  env -u REDIS_URL "$ctl" master --config "$state/master.yml" 2>"$state/master.log" &
  master=$!
  pids+=("$master")
  until_it env CTL_MASTER_URL="http://127.0.0.1:$port" "$ctl" workers list
  "$load" --url "http://127.0.0.1:$port" --master-pid "$master" ${extra[@]+"${extra[@]}"} \
    ${options[@]+"${options[@]}"} || { tail -5 "$state/master.log" >&2; exit 1; }
  if [ -n "$redis_port" ]; then
    redis-cli -p "$redis_port" info memory | grep -E '^used_memory(_peak)?_human' | tr -d '\r' | sed 's/^/  Redis /'
  fi
  du -sh "$state" | awk '{print "  store on disk: " $1}'
  grep -E 'WARN|ERROR' "$state/master.log" | sed 's/^[^ ]* *//' | cut -c1-160 | sort | uniq -c | sort -rn | head -5 || true
  stop
done
