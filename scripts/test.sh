#!/usr/bin/env bash
# Runs every check and test. Installs what they need and is missing (as root, by apt): redis-server, openssl, curl,
# e2fsprogs, xfsprogs, btrfs-progs; bindfs, by which hosts mount one tree as with a network file system; rsync and
# python3, by which what arrived is judged; git, by which patterns are judged; python3-pydantic and python3-httpx for the
# agent of tests/legacy. cargo-nextest is used if present, else cargo test; cargo-deny is used if present.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for program in redis-server rsync python3 openssl curl git bindfs; do
  command -v "$program" >/dev/null || missing+=("$program")
done
for program in mkfs.ext4 chattr; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || { missing+=(e2fsprogs); break; }
done
for program in xfs:xfsprogs btrfs:btrfs-progs; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "mkfs.${program%%:*}" >/dev/null || missing+=("${program##*:}")
done
# The first python3 of the path may be one that does not see the packages of the system.
has_models() { "$1" -c 'import pydantic, httpx' >/dev/null 2>&1; }
has_models python3 || has_models /usr/bin/python3 || missing+=(python3 python3-pydantic python3-httpx)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing what is missing: ${missing[*]}"
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  # The packages would start servers of their own; the tests start theirs.
  policy=/usr/sbin/policy-rc.d
  made=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    made=1
  fi
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [ -z "$made" ] || $as_root rm -f "$policy"
fi

cargo fmt --all -- --check
cargo clippy --locked --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --document-private-items
if cargo deny --version >/dev/null 2>&1; then
  cargo deny --locked check bans licenses sources
  # The database is not downloaded here: a check of the same commit gives the same result without a network. Download it
  # with `cargo deny fetch db`.
  if [ -n "$(ls "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs 2>/dev/null)" ]; then
    cargo deny --locked check --disable-fetch advisories
  else
    echo "not checked: advisories of dependencies (no database: cargo deny fetch db)"
  fi
else
  echo "not checked: licences, sources and advisories of dependencies (cargo install cargo-deny --locked)"
fi
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --locked --no-fail-fast "$@"
else
  cargo test --locked --no-fail-fast -- "$@"
fi
