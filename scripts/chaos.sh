#!/usr/bin/env bash
# Lets everything fail at random while syncs run, for a given time and from a seed; then heals, waits for the
# end, and compares trees and counters. Needs root, python3 and redis-server; run by hand, it takes its time.
#
#   scripts/chaos.sh [--minutes 20] [--seed N] [--ctl BIN] [--masters 2] [--dir DIR] [--only KIND,…] [--keep]
#
# Two masters on one Redis, two agents with the source and two with the destination, each in a network
# namespace; between them a line that can be cut, delayed and made to flip bits (scripts/chaos/line.py). The work
# is done by Python 3 (standard library only): scripts/chaos/*.py
set -euo pipefail
command -v python3 >/dev/null || { echo "chaos.sh: python3 is needed" >&2; exit 1; }
exec python3 -B "$(dirname "$0")/chaos" "$@"
