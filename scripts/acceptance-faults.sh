#!/usr/bin/env bash
# What happens to whole syncs when one thing goes wrong, at full size: prints what was measured, and PASS or
# FAIL for each row. Needs root, python3 and redis-server; run by hand, all rows take about a quarter of an hour.
#
#   scripts/acceptance-faults.sh [--ctl BIN] [--row leader|store|room|flips|connections|stopped|cancel,…]
#     [--dir DIR] [--scale 1] [--keep]
#
#   leader    the leading master is killed ten times in a row while 3 GiB and 50,000 files are copied
#   store     Redis: FLUSHALL, then SHUTDOWN NOSAVE and a start without its data, in mid-sync
#   room      a tree of 2 GiB to a destination of 1 GiB, which is enlarged when the sync is paused
#   flips     bits flip in content, under a TCP checksum that is right
#   connections  one bit flips in every hundredth data connection, in syncs one after the other
#   stopped   an agent that receives is stopped for 60 s and goes on
#   cancel    a sync is cancelled in mid-copy
#
# --scale 0.1 takes a tenth of the data. The lab is that of scripts/chaos.sh: namespaces, and a line between them.
set -euo pipefail
command -v python3 >/dev/null || { echo "acceptance-faults.sh: python3 is needed" >&2; exit 1; }
exec python3 -B "$(dirname "$0")/chaos/acceptance.py" "$@"
