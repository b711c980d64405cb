#!/usr/bin/env bash
# Compares Longhaul with others on the same data in one run, in turn (A B A B …), and prints medians and
# ratios. Run by hand on a quiet machine; never part of the tests.
#
#   scripts/bench.sh [--runs N] [--dir DIR] [--large MIB] [--small COUNT]
#
# Sides, each from DIR/src to an empty destination on the same file system:
#   longhaul   master (Redis where there is one, else embedded), a source and a destination agent as
#              processes of their own, content over loopback, every byte hashed on both ends, flushed
#   rsync      rsync -a to an rsync daemon over loopback; "+sync" with the flush that longhaul includes
#   tar        tar c | tar x, one process each, +sync
#   cp         cp -a, +sync
#   guc        globus-url-copy over loopback, where it and a GridFTP server are installed
set -euo pipefail

runs=5 dir="" large=3072 small=50000
while [ $# -gt 0 ]; do
  case "$1" in
    --runs) runs=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --large) large=$2; shift 2 ;;
    --small) small=$2; shift 2 ;;
    *) sed -n '2,6p' "$0"; exit 2 ;;
  esac
done
root=$(cd "$(dirname "$0")/.." && pwd)
made=""
[ -n "$dir" ] || { dir=$(mktemp -d); made=1; }
mkdir -p "$dir"
ctl="${CARGO_TARGET_DIR:-$root/target}/release/ctl"
(cd "$root" && cargo build --release --locked --quiet)

pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir/dst" "$dir/state"
  [ -z "$made" ] || rm -rf "$dir"
}
trap stop EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# --- data -------------------------------------------------------------------------------------------
python3 - "$dir" "$large" "$small" <<'PY'
import os, sys
root, large, small = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(f"{root}/src/large", exist_ok=True)
path = f"{root}/src/large/file"
if not os.path.exists(path) or os.path.getsize(path) != large << 20:
    block = os.urandom(16 << 20)
    with open(path, "wb") as f:
        for i in range(0, large, 16):
            f.write((i.to_bytes(8, "little") + block)[: min(16, large - i) << 20])
done = f"{root}/src/small.{small}"
if not os.path.exists(done):
    os.makedirs(done)
    pool = os.urandom(1 << 20)
    for i in range(small):
        d = f"{done}/{i // 1000:03}/{i // 100 % 10}"
        if i % 100 == 0:
            os.makedirs(d, exist_ok=True)
        n = (i * 2654435761) % 8192
        with open(f"{d}/f{i}", "wb") as f:
            f.write(pool[i : i + n])
PY

# --- services ---------------------------------------------------------------------------------------
mkdir -p "$dir/state"
mport=$(free_port) rport=$(free_port)
store="data_dir: $dir/state/master"
if command -v redis-server >/dev/null; then
  dport=$(free_port)
  redis-server --port "$dport" --bind 127.0.0.1 --dir "$dir/state" --appendonly yes --save "" \
    >"$dir/state/redis.log" 2>&1 &
  pids+=($!)
  store="redis: { host: 127.0.0.1, port: $dport }"
fi
printf 'listen: 127.0.0.1:%s\n%s\n' "$mport" "$store" >"$dir/state/master.yml"
cat >"$dir/state/agents.yml" <<YML
master_url: http://127.0.0.1:$mport
workers:
  - worker_id: from
    storage_paths: [$dir/src]
    network: { data_plane_endpoints: ["127.0.0.1:$(free_port)"] }
  - worker_id: to
    storage_paths: [$dir/dst]
    network: { data_plane_endpoints: ["127.0.0.1:$(free_port)"] }
YML
mkdir -p "$dir/dst"
"$ctl" master --config "$dir/state/master.yml" 2>"$dir/state/master.log" &
pids+=($!)
for id in from to; do
  "$ctl" agent --worker-id "$id" --config "$dir/state/agents.yml" 2>"$dir/state/$id.log" &
  pids+=($!)
done
have_rsync=""
if command -v rsync >/dev/null; then
  have_rsync=1
  cat >"$dir/state/rsyncd.conf" <<CONF
port = $rport
address = 127.0.0.1
use chroot = no
uid = $(id -u)
gid = $(id -g)
pid file = $dir/state/rsyncd.pid
[dst]
path = $dir/dst
read only = no
CONF
  rsync --daemon --no-detach --config="$dir/state/rsyncd.conf" >"$dir/state/rsync.log" 2>&1 &
  pids+=($!)
fi
export CTL_MASTER_URL="http://127.0.0.1:$mport"
until [ "$("$ctl" workers list -o json 2>/dev/null | python3 -c \
  'import json,sys; print(len(json.load(sys.stdin)["active"]))' 2>/dev/null)" = 2 ]; do :; done

# --- sides ------------------------------------------------------------------------------------------
longhaul() { "$ctl" sync submit "$1" "$dir/dst/out" --wait -q --progress none >/dev/null; }
rsync_plain() { rsync -a "$1/" "rsync://127.0.0.1:$rport/dst/out/"; }
rsync_sync() { rsync_plain "$1"; sync -f "$dir/dst"; }
tar_sync() { mkdir -p "$dir/dst/out"; tar -C "$1" -cf - . | tar -C "$dir/dst/out" -xf -; sync -f "$dir/dst"; }
cp_sync() { cp -a "$1" "$dir/dst/out"; sync -f "$dir/dst"; }
guc() { globus-url-copy -q -r -cd -p 4 "file://$1/" "${GRIDFTP_URL:?}$dir/dst/out/"; sync -f "$dir/dst"; }
sides=(longhaul)
[ -z "$have_rsync" ] || sides+=(rsync_plain rsync_sync)
sides+=(tar_sync cp_sync)
if command -v globus-url-copy >/dev/null && [ -n "${GRIDFTP_URL:-}" ]; then
  sides+=(guc)
else
  echo "left out: globus-url-copy (not installed, or GRIDFTP_URL names no server)"
fi

results="$dir/state/results"
: >"$results"
for set in large "small.$small"; do
  for run in $(seq 0 "$runs"); do
    for side in "${sides[@]}"; do
      rm -rf "$dir/dst/out"
      sync -f "$dir"
      begin=$(date +%s.%N)
      "$side" "$dir/src/$set"
      end=$(date +%s.%N)
      # The first round warms the page cache and is not counted.
      [ "$run" = 0 ] || echo "$set $side $begin $end" >>"$results"
    done
  done
done

python3 - "$results" <<'PY'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    data, side, begin, end = line.split()
    times.setdefault(data, {}).setdefault(side, []).append(float(end) - float(begin))
for data, sides in times.items():
    print(f"\n{data}: seconds, and the other side's time / longhaul's, pair by pair")
    ours = sides["longhaul"]
    for side, values in sides.items():
        ratios = [theirs / mine for theirs, mine in zip(values, ours)]
        print(f"  {side:12} median {statistics.median(values):7.2f}  min {min(values):7.2f}"
              f"  max {max(values):7.2f}   ratio {statistics.median(ratios):5.2f}")
PY
