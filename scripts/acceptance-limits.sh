#!/usr/bin/env bash
# Measures whether agents together keep to a limit. A master, three source agents and one destination agent
# run as processes, content goes over loopback; one sync runs with --bwlimit. What arrives is counted twice a
# second; printed are the least, the median and the greatest of all windows of 10 seconds against the limit.
# Ends with 1 where one of them is off by more than the tolerance.
#
#   scripts/acceptance-limits.sh [--ctl PROGRAM] [--limit MIB] [--seconds N] [--dir DIR] [--tolerance PERCENT]
#
#   --ctl PROGRAM   the release binary                             [default: builds it]
#   --limit MIB     of the sync, in MiB/s                          [default: 200]
#   --seconds N     to measure, at least 15                        [default: 30]
#   --dir DIR       work below it; holds limit x seconds twice     [default: a new directory in /dev/shm]
#   --tolerance P   in per cent                                    [default: 5]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
ctl="" limit=200 seconds=30 dir=/dev/shm tolerance=5
while [ $# -gt 0 ]; do
  case "$1" in
    --ctl) ctl=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --tolerance) tolerance=$2; shift 2 ;;
    *) sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'; exit 2 ;;
  esac
done
[ "$seconds" -ge 15 ] || { echo "--seconds must be at least 15" >&2; exit 2; }
command -v python3 >/dev/null || { echo "python3 is needed" >&2; exit 1; }
if [ -z "$ctl" ]; then
  (cd "$here/.." && cargo build --release --locked --quiet)
  ctl="${CARGO_TARGET_DIR:-$here/../target}/release/ctl"
fi

work=$(mktemp -d "$dir/limits.XXXXXX")
pids=()
end() {
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export CTL_MASTER_URL="http://127.0.0.1:$port"
mkdir "$work/src" "$work/dst"
# Something over what is moved while it warms up and is measured, in files that several agents share.
files=12
each=$(((limit * (seconds + 8) + files - 1) / files))
for n in $(seq "$files"); do head -c "${each}M" /dev/urandom >"$work/src/f$n" & done
wait

printf 'listen: 127.0.0.1:%s\ndata_dir: %s/state\n' "$port" "$work" >"$work/master.yml"
{
  echo "master_url: $CTL_MASTER_URL"
  echo "data_dir: $work/agents"
  echo "workers:"
  for name in s1 s2 s3 d; do
    case $name in d) root=dst ;; *) root=src ;; esac
    echo "  - worker_id: $name"
    echo "    storage_paths: [$work/$root]"
    echo "    network: {data_plane_endpoints: [{address: 127.0.0.1, port: 0}]}"
  done
} >"$work/agents.yml"
"$ctl" master --config "$work/master.yml" >"$work/master.log" 2>&1 &
pids+=($!)
for name in s1 s2 s3 d; do
  "$ctl" agent --worker-id "$name" --config "$work/agents.yml" >"$work/$name.log" 2>&1 &
  pids+=($!)
done
receiver=${pids[-1]}
for _ in $(seq 100); do
  [ "$("$ctl" workers list 2>/dev/null | grep -cE '^(s[123]|d) ')" = 4 ] && break
  sleep 0.1
done
[ "$("$ctl" workers list | grep -cE '^(s[123]|d) ')" = 4 ] || { tail -n 5 "$work"/*.log >&2; exit 1; }

"$ctl" sync submit "$work/src" "$work/dst" --id limited --bwlimit "${limit}MiB/s" -q >/dev/null
python3 - "$receiver" "$limit" "$seconds" "$tolerance" <<'PY'
import statistics, sys, time

pid, limit, seconds, tolerance = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])

def written():
    for line in open(f"/proc/{pid}/io"):
        if line.startswith("wchar:"):
            return int(line.split()[1])

def sample():
    return time.monotonic(), written()

begun = written()
while written() < begun + (1 << 20):
    time.sleep(0.05)
time.sleep(2)  # until shares have settled: the first beats
samples = [sample()]
while samples[-1][0] < samples[0][0] + seconds:
    time.sleep(0.5)
    samples.append(sample())
rates = []
for i, (at, count) in enumerate(samples):
    later = next((s for s in samples[i:] if s[0] >= at + 10), None)
    if later:
        rates.append((later[1] - count) / (later[0] - at) / (1 << 20))
least, middle, most = min(rates), statistics.median(rates), max(rates)
print(f"limit {limit:.1f} MiB/s, {len(rates)} windows of 10 s: "
      f"least {least:.1f} ({100 * least / limit:.1f} %), median {middle:.1f} ({100 * middle / limit:.1f} %), "
      f"greatest {most:.1f} ({100 * most / limit:.1f} %)")
off = max(abs(least / limit - 1), abs(most / limit - 1)) * 100
sys.exit(0 if off <= tolerance else f"off by {off:.1f} %, more than {tolerance:.0f} %")
PY
"$ctl" sync cancel limited -q >/dev/null
