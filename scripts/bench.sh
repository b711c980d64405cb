#!/usr/bin/env bash
# Compares Longhaul with what else is installed, on the same data in one run, in turn (A B A B …): medians,
# ratios pair by pair, CPU seconds and peak memory. Run by hand on a quiet machine; never part of the tests.
#
#   scripts/bench.sh [--runs N] [--dir DIR] [--sets large,mid,small,…] [--sides longhaul,rsync,…] [--scale X]
#                    [--ctl BIN] [--yardstick BIN] [--check] [--markdown FILE] [--png FILE] [--json FILE]
#
# `scripts/bench.sh --help` lists all options, sets and sides. The work is done by Python 3 (standard library
# only; the chart wants matplotlib): scripts/bench/*.py
set -euo pipefail
command -v python3 >/dev/null || { echo "bench.sh: python3 is needed" >&2; exit 1; }
exec python3 -B "$(dirname "$0")/bench" "$@"
