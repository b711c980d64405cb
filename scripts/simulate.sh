#!/usr/bin/env bash
# Plays the scheduler in the simulated world of src/scheduler/tests/sim, in release and on all cores, and
# says how many seeds a second were played and what was found. A seed that fails is printed with what led
# to it, and with the line that pins it.
#
#   scripts/simulate.sh [--seeds N] [--steps N] [--from SEED] [--jobs N]
#
#   --seeds N     so many seeds                      [default: 20000]
#   --steps N     steps of chance for each           [default: 500]
#   --from SEED   the first one                      [default: 0]
#   --jobs N      processes at a time                [default: as many as there are cores]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seeds=20000 steps=500 from=0 jobs=$(nproc)
while [ $# -gt 0 ]; do
  case "$1" in
    --seeds) seeds=$2; shift 2 ;;
    --steps) steps=$2; shift 2 ;;
    --from) from=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    *) sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'; exit 2 ;;
  esac
done

# What makes a release small and quick makes its build slow; here it would not pay.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0
cd "$here/.."
built=$(cargo test --release --locked --lib --no-run --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
[ -x "$built" ] || { echo "the tests cannot be built; see: cargo test --release --lib --no-run" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
begun=$(date +%s.%N)
pids=()
each=$(((seeds + jobs - 1) / jobs))
for ((job = 0; job < jobs; job++)); do
  first=$((from + job * each)) count=$each
  ((job < jobs - 1)) || count=$((from + seeds - first))
  ((count > 0)) || continue
  LONGHAUL_SIM_FROM=$first LONGHAUL_SIM_SEEDS=$count LONGHAUL_SIM_STEPS=$steps RUST_BACKTRACE=0 \
    "$built" --nocapture --exact \
    scheduler::tests::sim::the_invariants_hold_and_every_sync_ends_correctly_on_fixed_seeds >"$work/$job" 2>&1 &
  pids+=($!)
done
bad=0
for pid in "${pids[@]}"; do wait "$pid" || bad=1; done
if ((bad)); then
  grep -h -v '^test result\|^running\|^failures' "$work"/* || true
  echo "a seed fails" >&2
  exit 1
fi
grep -h 'seeds/s' "$work"/*
awk -v seeds="$seeds" -v steps="$steps" -v begun="$begun" -v now="$(date +%s.%N)" 'BEGIN {
  printf "%d seeds of %d steps in %.0f s, %.1f seeds/s: nothing found\n", seeds, steps, now - begun, seeds / (now - begun) }'
