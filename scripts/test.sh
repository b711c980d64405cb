#!/usr/bin/env bash
# Runs every check and test. Installs what is missing: redis-server (as root, by apt) and, where it is
# not there, nothing else: cargo-nextest is used if present, else cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v redis-server >/dev/null; then
  echo "redis-server is missing: installing it"
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  # The package would start a server of its own; the tests start theirs.
  policy=/usr/sbin/policy-rc.d
  made=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    made=1
  fi
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends redis-server >/dev/null
  [ -z "$made" ] || $as_root rm -f "$policy"
fi

cargo fmt --all -- --check
cargo clippy --locked --all-targets -- -D warnings
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --no-fail-fast "$@"
else
  cargo test --locked --no-fail-fast -- "$@"
fi
