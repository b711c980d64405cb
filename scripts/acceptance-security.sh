#!/usr/bin/env bash
# Checks what docs/security.md says of a cluster on three hosts (network and mount namespaces): each command is printed
# with its reply. Ends with 1 where a reply is another one than expected. Needs root.
#
#   scripts/acceptance-security.sh --ctl PROGRAM [--part PART]… [--dir DIR]
#
#   --ctl PROGRAM   the program to check
#   --part PART     one of the parts below; may be repeated                         [default: all]
#   --dir DIR       work below it                                        [default: a new directory in /tmp]
#
# setup    the five commands of docs/security.md, and a sync; then stolen and revoked credentials, and missing rights
# user     a sync that acts as uid 1000
# attacks  the attacks of the table in docs/security.md: those over HTTP as commands, the others as tests (with cargo)
# secrets  each secret is searched for in stores, logs, environments and command lines, with SQLite and with Redis
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
ctl="" dir=/tmp parts=()
while [ $# -gt 0 ]; do
  case "$1" in
    --ctl) ctl=$(realpath "$2"); shift 2 ;;
    --part) parts+=("$2"); shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    *) sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2; exit 2 ;;
  esac
done
[ -x "$ctl" ] || { echo "--ctl must name the program to be checked" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network and mount namespaces need root" >&2; exit 1; }
[ "${#parts[@]}" -gt 0 ] || parts=(setup user attacks secrets)
for program in curl ip nsenter openssl python3 setpriv unshare; do
  command -v "$program" >/dev/null || { echo "\`$program\` is missing" >&2; exit 1; }
done

work=$(mktemp -d "$dir/security.XXXXXX")
# Other users run the program, and search paths below the directory.
chmod 755 "$work"
mkdir -p "$work/bin"
cp "$ctl" "$work/bin/ctl"
declare -A space=() pid=()
failed=""

end() {
  local name
  for name in "${!pid[@]}"; do kill -9 "${pid[$name]}" 2>/dev/null || true; done
  for name in "${!space[@]}"; do kill -9 "${space[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  pid=() space=()
}
trap 'end; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

title() { printf '\n== %s\n' "$*"; }
pass() { echo "PASS  $*"; }
fail() { echo "FAIL  $*"; failed=1; }
die() {
  echo "$*" >&2
  tail -n 20 "$work"/*/*.log >&2 2>/dev/null || true
  exit 1
}
# await SECONDS WHAT COMMAND…: until the command succeeds.
await() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -lt "$until" ] || die "not in time: $what"
    sleep 0.05
  done
}

# --- hosts ------------------------------------------------------------------------------------------
# on HOST LINE: a line of the shell there, in the home of root.
on() {
  nsenter "--target=${space[$1]}" --net --mount -- env -i PATH="$work/bin:/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8 \
    HOME="$work/$1/home" sh -c "cd '$work/$1/home' && $2"
}

# host NAME: network and mount namespaces with a /srv and a /var/lib of their own.
host() {
  mkdir -p "$work/$1/home" "$work/$1/srv" "$work/$1/var"
  # shellcheck disable=SC2016
  unshare --net --mount sh -c \
    'mount --bind "$1/srv" /srv && mount --bind "$1/var" /var/lib && ip link set lo up && exec sleep infinity' \
    - "$work/$1" &
  space[$1]=$!
  await 10 "the namespaces of $1" grep -qx sleep "/proc/${space[$1]}/comm"
}

# hosts: the host `head` with 10.0.0.1, which routes between `a` with 10.0.0.2 and `b` with 10.0.0.3.
hosts() {
  local name address
  for name in head a b; do host "$name"; done
  for name in a b; do
    address=10.0.0.$([ "$name" = a ] && echo 2 || echo 3)
    on head "ip link add to-$name type veth peer name eth0 netns ${space[$name]} && ip link set to-$name up &&
      ip address add 10.0.0.1/32 dev to-$name && ip route add $address/32 dev to-$name"
    on "$name" "ip address add $address/32 dev eth0 && ip link set eth0 up && ip route add 10.0.0.1/32 dev eth0 &&
      ip route add default via 10.0.0.1 dev eth0"
  done
  on head "echo 1 > /proc/sys/net/ipv4/ip_forward"
  mkdir -p "$work/a/srv/data" "$work/b/srv/data"
}

# start NAME HOST TEXT LINE: prints and starts a command in the background, until its log has a text.
start() {
  local name=$1 host=$2 text=$3 line=${4% &}
  echo "$host\$ $line &"
  # The process is to be the program itself: it is killed by its id.
  nsenter "--target=${space[$host]}" --net --mount -- env -i PATH="$work/bin:/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8 \
    HOME="$work/$host/home" CTL_LOG_LEVEL="${level:-info}" sh -c "cd '$work/$host/home' && umask 077 && exec $line" \
    >"$work/$host/$name.log" 2>&1 &
  pid[$name]=$!
  await 60 "\`$text\` in the log of $name" grep -qF -- "$text" "$work/$host/$name.log"
}

stop() { kill -9 "${pid[$1]}" 2>/dev/null || true; wait "${pid[$1]}" 2>/dev/null || true; unset "pid[$1]"; }

# reply HOST CODE LINE [TEXT…]: prints a command and its reply, which must end with a code and have the texts.
reply() {
  local host=$1 code=$2 line=$3 ended=0 text
  shift 3
  echo "$host\$ $line"
  on "$host" "$line" >"$work/reply" 2>&1 || ended=$?
  sed 's/^/  | /' "$work/reply" | cut -c1-400
  echo "  (exit code $ended)"
  [ "$ended" = "$code" ] || fail "exit code $ended instead of $code"
  for text in "$@"; do
    if grep -qF -- "$text" "$work/reply"; then pass "\`$text\`"; else fail "there is no \`$text\`"; fi
  done
}

is() { # what value expected
  if [ "$2" = "$3" ]; then pass "$1: $2"; else fail "$1: $2 (expected $3)"; fi
}

same() { # what source destination
  if "$here/compare-trees.py" "$2" "$3" >"$work/differences"; then pass "$1: the trees are identical"; else
    head -n 5 "$work/differences"; fail "$1: the trees differ"; fi
}

# The lines of a block of shell in a section of docs/security.md.
block() { # title number
  awk -v title="## $1" -v number="$2" '
    /^## / { inside = $0 == title }
    inside && /^```sh/ { n++; shown = n == number; next }
    /^```/ { shown = 0 }
    shown && inside { print }' "$here/../docs/security.md"
}

# set_up: the five commands, as the document has them.
set_up() {
  local line name setup="Set up a cluster in five commands"
  hosts
  while IFS= read -r line; do
    case "$line" in
      *\&) start master head "leader ready" "$line" ;;
      ctl*) on head "umask 077 && $line" && echo "head\$ $line" ;;
    esac
  done < <(block "$setup" 1)
  for name in a b; do
    cp "$here/../configs/secure-agents.yml" "$work/$name/home/agents.yml"
    install -m 600 "$work/head/home/$name.token" "$work/$name/home/$name.token"
  done
  start a a "connected to the master" "$(block "$setup" 2)"
  start b b "connected to the master" "$(block "$setup" 3)"
}

# A file of random bytes, and small ones.
data() { # directory MiB files
  mkdir -p "$1"
  head -c "$2M" /dev/urandom >"$1/large"
  for n in $(seq "$3"); do head -c 1000 /dev/urandom >"$1/small-$n"; done
}

# token FILE OPTIONS…: a token made on the host of the master, in a file on b.
token() {
  local file=$1
  shift
  on head "umask 077 && ctl token create $* > $file"
  install -m 600 "$work/head/home/$file" "$work/b/home/$file"
  echo "head\$ ctl token create $* > $file"
}
id_of() { on head "ctl token list" | awk -v label="$1" '$0 ~ label { print $1; exit }'; }

# What operators on another host than the master's need.
remote="CTL_MASTER_URL=https://10.0.0.1:8888 CTL_CA_FILE=ca.pem"

# --- setup ------------------------------------------------------------------------------------------
setup() {
  title "a cluster by the five commands of docs/security.md"
  set_up
  data "$work/a/srv/data" 24 300
  reply head 0 "$(block "Set up a cluster in five commands" 4)"
  same "over TLS" "$work/a/srv/data" "$work/b/srv/data"
  install -m 644 "$work/head/var/longhaul/ca.pem" "$work/b/home/ca.pem"

  title "a join token that was used"
  cp -p "$work/a/home/a.token" "$work/b/home/stolen.token"
  reply b 78 "ctl agent --config agents.yml --worker-id a --join-token-file stolen.token" "was used before, by another agent"

  title "another authority"
  printf 'listen: ["127.0.0.1:9999", "10.0.0.3:9999"]\ndata_dir: /var/lib/other\n' >"$work/b/home/other.yml"
  start other b "leader ready" "ctl master --config other.yml"
  stop other
  reply b 5 "CTL_MASTER_URL=https://10.0.0.1:8888 CTL_CA_FILE=/var/lib/other/ca.pem ctl workers list" \
    "the certificate of the server is of another authority"
  on head "umask 077 && ctl token create --join --worker c --path /srv/data" >"$work/token"
  awk -F. -v OFS=. '{ gsub(/./, "0", $2); print }' "$work/token" >"$work/b/home/c.token"
  chmod 600 "$work/b/home/c.token"
  sed 's/worker_id: b/worker_id: c/' "$work/b/home/agents.yml" >"$work/b/home/c.yml"
  sed -i 's/10.0.0.3}/10.0.0.3, port: 8890}/' "$work/b/home/c.yml"
  start c b "so the token was not sent" "ctl agent --config c.yml --worker-id c --join-token-file c.token"
  grep -m1 -F "so the token was not sent" "$work/b/c.log" | cut -c1-300 | sed 's/^/  | /'
  stop c
  is "state of the token that was not sent" \
    "$(on head "ctl token list" | grep -c "$(cut -d. -f3 "$work/token").*valid")" 1

  title "an agent that is revoked in a sync"
  sed -e 's/worker_id: a$/worker_id: a2/' -e 's/10.0.0.2}/10.0.0.2, port: 8890}/' "$work/a/home/agents.yml" \
    >"$work/a/home/a2.yml"
  on head "umask 077 && ctl token create --join --worker a2 --path /srv/data > a2.token"
  install -m 600 "$work/head/home/a2.token" "$work/a/home/a2.token"
  start a2 a "connected to the master" "ctl agent --config a2.yml --worker-id a2 --join-token-file a2.token"
  data "$work/a/srv/data/more" 24 300
  reply head 0 "ctl sync submit a,a2:/srv/data/more b:/srv/data/more --id more --bwlimit 1MiB/s --chunk-size-mb 1"
  await 60 "a has tasks" has_tasks a
  reply head 0 "ctl workers revoke a"
  since=$(date +%s%N)
  await 10 "the agent is out" grep -qF "was revoked" "$work/a/a.log"
  echo "PASS  the agent is out after $((($(date +%s%N) - since) / 1000000)) ms (at most 10 s)"
  grep -m1 -F "was revoked" "$work/a/a.log" | cut -c1-300 | sed 's/^/  | /'
  reply head 0 "ctl workers list" "REVOKED"
  reply head 0 "ctl sync set more --bwlimit none"
  reply head 0 "ctl sync wait more"
  same "after the revocation" "$work/a/srv/data/more" "$work/b/srv/data/more"

  title "operators"
  token op.token --role operator --scope /srv/data /srv/data --label op-token
  reply b 0 "$remote CTL_TOKEN_FILE=op.token ctl sync list" "more"
  reply b 4 "$remote CTL_TOKEN_FILE=op.token ctl sync submit a2:/srv b:/srv/data/x" \
    "the token does not allow syncs from /srv to /srv/data/x"
  reply b 4 "$remote CTL_TOKEN_FILE=op.token ctl sync submit a2:/srv/data/more b:/srv/data/x --chown 7:7" \
    "has not the right \`chown\`"
  reply b 4 "$remote CTL_TOKEN_FILE=op.token ctl sync submit a2:/srv/data/more b:/srv/data/x --delete" \
    "has not the right \`delete\`"
  reply b 4 "$remote CTL_TOKEN_FILE=op.token ctl workers revoke b" "needs the role \`admin\`"
  token view.token --role viewer --scope /srv/data /srv/data --label view-token
  reply b 4 "$remote CTL_TOKEN_FILE=view.token ctl sync submit a2:/srv/data/more b:/srv/data/x" \
    "needs the role \`operator\`"
  reply head 0 "ctl token revoke $(id_of op-token)"
  reply b 4 "$remote CTL_TOKEN_FILE=op.token ctl sync list" "revoked"
  reply b 4 "$remote ctl sync list" "has no credentials"
  reply head 0 "ctl audit verify"
  reply head 0 "ctl audit list" "403 path_not_allowed" "403 option_not_allowed" "403 role_missing" "401 revoked" \
    "403 join_token_used" "403 worker_revoked"
  end
}

has_tasks() { on head "ctl workers show $1 -o json" | grep -Eq '"in_flight": *[1-9]'; }

# --- user -------------------------------------------------------------------------------------------
user() {
  title "a sync that acts as uid 1000"
  set_up >/dev/null
  install -m 644 "$work/head/var/longhaul/ca.pem" "$work/b/home/ca.pem"
  local src=$work/a/srv/data/src dst=$work/b/srv/data/dst
  data "$src" 9 10
  chmod 755 "$src"
  chmod 644 "$src"/*
  echo "of root" >"$src/secret"
  chmod 600 "$src/secret"
  mknod "$src/null" c 1 3
  mkdir -p "$dst"
  chown 1000:1000 "$dst"
  chmod 755 "$work/a/srv/data" "$work/b/srv/data"
  token user.token --role operator --scope /srv/data /srv/data --run-as 1000:1000 --label user-token
  reply b 23 "$remote CTL_TOKEN_FILE=user.token ctl sync submit a:/srv/data/src b:/srv/data/dst --id user --wait" \
    "secret" "EACCES" "null"
  reply head 0 "ctl sync status user" "1000:1000" "EACCES" "secret"
  echo "b\$ ls -ln /srv/data/dst"
  # shellcheck disable=SC2012
  ls -ln "$dst" | sed 's/^/  | /'
  is "owners of all that was written" "$(find "$dst" -mindepth 1 -printf '%U:%G\n' | sort -u)" 1000:1000
  is "files that were written" "$(find "$dst" -mindepth 1 | wc -l)" 11
  is "devices" "$(find "$dst" -type c | wc -l)" 0
  mkdir -m 700 "$work/b/srv/data/private"
  reply b 4 "$remote CTL_TOKEN_FILE=user.token ctl sync submit a:/srv/data/src b:/srv/data/private --wait" "EACCES" \
    "private"
  is "entries in the destination of root" "$(find "$work/b/srv/data/private" -mindepth 1 | wc -l)" 0
  sed -i 's/min_uid: 1000/min_uid: 2000/' "$work/b/home/agents.yml"
  stop b
  start b b "connected to the master" "ctl agent --config agents.yml --worker-id b"
  reply b 7 "$remote CTL_TOKEN_FILE=user.token ctl sync submit a:/srv/data/src b:/srv/data/dst --wait" \
    "uid 1000 is below 2000" "run_as_refused"
  end
}

# --- attacks ----------------------------------------------------------------------------------------
# request HOST STATUS TEXT CURL-OPTIONS…: prints a request and its reply, which must have a status and a text.
request() {
  local host=$1 status=$2 text=$3
  shift 3
  reply "$host" 0 "curl -sS -w '%{http_code}\n' $*" "$text"
  is "status" "$(tail -n 1 "$work/reply" | grep -o '[0-9]*$')" "$status"
}

attacks() {
  local loopback=http://127.0.0.1:8888 tls=https://10.0.0.1:8888 config
  title "attacks over HTTP"
  set_up >/dev/null
  install -m 644 "$work/head/var/longhaul/ca.pem" "$work/b/home/ca.pem"
  local sync='{\"source_path\":\"/srv/data\",\"destination_path\":\"/srv/data/x\"}'
  local beat='{\"worker_id\":\"evil\",\"status\":\"IDLE\",\"storage_paths\":[\"/\"],\"protocol\":4,\"data_plane_endpoints\":[{\"address\":\"ADDRESS\",\"port\":80}]}'
  echo "- who reaches the port: syncs, reports of a worker, commands of operators"
  request b 401 no_credentials "--cacert ca.pem $tls/sync -d \"$sync\""
  request b 401 no_credentials "--cacert ca.pem $tls/workers/heartbeat -d \"${beat/ADDRESS/10.0.0.3}\""
  request b 401 no_credentials "--cacert ca.pem -X POST $tls/workers/a/drain"
  request b 400 tls_required "http://10.0.0.1:8888/sync -d \"$sync\""
  request b 401 bad_credentials "--cacert ca.pem $tls/sync -H 'Authorization: Bearer lh1_0123456789ab_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'"
  echo "- another user of the master's host, and a proxy there"
  reply head 0 "setpriv --reuid=65534 --regid=65534 --clear-groups curl -sS $loopback/sync -d \"$sync\"" local_user
  request head 401 no_credentials "-H 'X-Forwarded-For: 192.0.2.1' $loopback/sync"
  echo "- N4: endpoints in other forms and networks"
  for address in 2852039166 0xa9fea9fe 169.254.43518 169.254.169.254 metadata.google.internal 127.1; do
    request head 422 data_plane_endpoints "$loopback/workers/heartbeat -d \"${beat/ADDRESS/$address}\""
  done
  echo "- N5: a web page under a name that leads to the master, and one of another site"
  request head 421 foreign_host "-H 'Host: evil.example:8888' -H 'Origin: http://evil.example:8888' $loopback/sync -d \"$sync\""
  request head 403 foreign_origin "-H 'Origin: http://evil.example' $loopback/sync -d \"$sync\""
  reply head 0 'bash -c "exec 3<>/dev/tcp/127.0.0.1/8888; printf \"GET /sync HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n\" >&3; cat <&3"' \
    "HTTP/1.1 400"
  echo "- the data port without TLS"
  request b 400 tls_required "http://10.0.0.2:8889/v1/probe"
  echo "- N9: a configuration with a password that others can read"
  config=$work/head/home/open.yml
  printf 'data_dir: /var/lib/open\nredis: {host: 127.0.0.1, password: secret-of-redis}\n' >"$config"
  chmod 644 "$config"
  reply head 78 "ctl master --config open.yml" "chmod"
  end

  title "attacks as tests"
  local name file filter="" table tests=() files=()
  # Those that the table of the document names: MODULE::tests::NAME of the library, and FILE::NAME.
  table=$(sed -n '/^## Attacks that were tried/,/^## Tests/p' "$here/../docs/security.md")
  while IFS= read -r name; do
    tests+=("$name")
    filter="$filter + (kind(lib) & test(=$name))"
  done < <(grep -o '`[a-z0-9_:]*::tests::[a-z0-9_:]*`' <<<"$table" | tr -d '`' | sort -u)
  while IFS= read -r name; do
    file=${name%%.rs::*} file=${file#tests/} name=${name#*.rs::}
    tests+=("$name")
    files+=(--test "$file")
    filter="$filter + (binary(=$file) & test(=$name))"
  done < <(grep -o '`tests/[a-z0-9_]*\.rs::[a-z0-9_]*`' <<<"$table" | tr -d '`' | sort -u)
  [ "${#tests[@]}" -ge 20 ] || die "docs/security.md names only ${#tests[@]} tests of attacks"
  (cd "$here/.." && cargo nextest run --locked --lib "${files[@]}" --no-fail-fast -E "${filter# + }" 2>&1) \
    >"$work/tests" || true
  grep -E '^ +(PASS|FAIL|Summary|TIMEOUT)|^error' "$work/tests" | sort -u || true
  for name in "${tests[@]}"; do
    grep -q "PASS .* $name\$" "$work/tests" || fail "$name did not pass"
  done
}

# --- secrets ----------------------------------------------------------------------------------------
secrets() {
  search_store sqlite
  if command -v redis-server >/dev/null; then search_store redis; else fail "redis-server is missing"; fi
}

search_store() {
  local store=$1 level=trace name
  title "secrets with $1: stores, logs at trace, environments, command lines, core dumps"
  hosts
  mkdir -p "$work/head/redis"
  {
    echo 'listen: ["127.0.0.1:8888", "10.0.0.1:8888"]'
    if [ "$store" = redis ]; then
      head -c 24 /dev/urandom | base64 | tr -d '+/=' >"$work/head/home/redis-password"
      chmod 600 "$work/head/home/redis-password"
      echo "redis: {host: 127.0.0.1, port: 6399, password_file: $work/head/home/redis-password}"
    fi
  } >"$work/head/home/master.yml"
  if [ "$store" = redis ]; then
    printf 'bind 127.0.0.1\nport 6399\ndir %s\nappendonly yes\nmaxmemory-policy noeviction\nrequirepass %s\n' \
      "$work/head/redis" "$(cat "$work/head/home/redis-password")" >"$work/redis.conf"
    chmod 600 "$work/redis.conf"
    start redis head "Ready to accept connections" "redis-server $work/redis.conf"
  fi
  start master head "leader ready" "ctl master --config master.yml"
  for name in a b; do
    on head "umask 077 && ctl token create --join --worker $name --path /srv/data > $name.token"
    install -m 600 "$work/head/home/$name.token" "$work/$name/home/$name.token"
    cp "$here/../configs/secure-agents.yml" "$work/$name/home/agents.yml"
    start "$name" "$name" "connected to the master" \
      "ctl agent --config agents.yml --worker-id $name --join-token-file $name.token"
  done
  install -m 644 "$work/head/var/longhaul/ca.pem" "$work/b/home/ca.pem"
  token op.token --role operator --scope /srv/data /srv/data --label op-token
  data "$work/a/srv/data" 9 100
  reply b 0 "$remote CTL_TOKEN_FILE=op.token ctl sync submit a:/srv/data b:/srv/data --id searched-for --wait"
  reply b 2 "$remote CTL_TOKEN_FILE=b.token ctl sync list" "this is no token"
  reply head 0 "ctl admin rotate ticket-key"
  # A command that runs during the search.
  head -c 40M /dev/urandom >"$work/a/srv/data/slow"
  start waits b "slow" "env CTL_LOG_LEVEL=trace $remote CTL_TOKEN_FILE=op.token ctl sync submit a:/srv/data b:/srv/data --id slow --bwlimit 1MiB/s --wait"
  if [ "$store" = redis ]; then
    REDISCLI_AUTH=$(cat "$work/head/home/redis-password") nsenter "--target=${space[head]}" --net -- \
      redis-cli -p 6399 SAVE | sed 's/^/  | SAVE: /'
  fi
  search "$store" "${!pid[@]}"
  end
  rm -rf "$work/head" "$work/a" "$work/b"
}

# search STORE PROCESS…: prints where each secret was searched for, and fails where one is found.
search() {
  local store=$1 name list=()
  shift
  for name in "$@"; do
    [ "$name" = redis ] || list+=("$name=${pid[$name]}")
  done
  python3 - "$work" "$store" "${list[@]}" <<'PY' || failed=1
import base64, json, os, re, sqlite3, subprocess, sys
from pathlib import Path

work, store, processes = Path(sys.argv[1]), sys.argv[2], dict(p.split("=") for p in sys.argv[3:])
state = work / "head/var/longhaul"
secrets = {}

def add(name, raw):
    """A secret in all forms in which it could be written."""
    assert len(raw) >= 16, name
    forms = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    for shift in range(3):
        # In base64 a text has three forms, by its place; the first and the last letters depend on its neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(b"\0" * shift + raw).rstrip(b"=")[4 if shift else 0:-1])
    secrets[name] = forms

def add_text(name, text):
    secrets[name] = {text.encode()}

def der(pem):
    return base64.b64decode("".join(line for line in pem.splitlines() if not line.startswith("-")))

def scalar(pkcs8):
    """The private number in the DER of an EC key."""
    at = pkcs8.index(bytes([2, 1, 1, 4, 32])) + 5
    return pkcs8[at:at + 32]

add("key that seals", (state / "secrets.key").read_bytes())
add("key of part files", (state / "names.key").read_bytes())
add("key of the authority", scalar(der((state / "ca.key").read_text())))
add_text("token of the administrator", (state / "admin.token").read_text().strip().rsplit("_", 1)[1])
add_text("token of an operator", (work / "head/home/op.token").read_text().strip().rsplit("_", 1)[1])
for name in "ab":
    add_text(f"join token of {name}", (work / f"head/home/{name}.token").read_text().strip().rsplit(".", 1)[1])
    pem = re.search(r"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----",
                    (work / f"{name}/var/longhaul/identity-{name}.json").read_text()).group(0)
    add(f"key of agent {name}", scalar(der(pem.replace("\\n", "\n"))))
if store == "redis":
    password = (work / "head/home/redis-password").read_text().strip()
    add_text("password of Redis", password)
    meta = subprocess.run(["nsenter", f"--target={processes['master']}", "--net", "--", "redis-cli", "--raw", "-p", "6399",
                           "HGET", "{longhaul:default}:records", "meta"], env={**os.environ, "REDISCLI_AUTH": password},
                          stdout=subprocess.PIPE, check=True).stdout
else:
    copy = sqlite3.connect(":memory:")
    sqlite3.connect(f"file:{state}/longhaul.db?mode=ro", uri=True).backup(copy)
    meta = copy.execute("SELECT value FROM records WHERE key = 'meta'").fetchone()[0]
    meta = meta.encode() if isinstance(meta, str) else meta
keys = json.loads(meta[meta.index(b"{"):meta.rindex(b"}") + 1])["ticket_keys"]
for key in keys:
    # AES-256-GCM without its check is CTR from the second block on: format, id of the key, nonce, ciphertext, tag.
    sealed = base64.b64decode(key["sealed"])
    opened = subprocess.run(["openssl", "enc", "-d", "-aes-256-ctr", "-K", (state / "secrets.key").read_bytes().hex(),
                             "-iv", sealed[9:21].hex() + "00000002"], input=sealed[21:-16], stdout=subprocess.PIPE,
                            check=True).stdout
    at = opened.index(bytes([4, 0x22, 4, 0x20])) + 4
    add(f"key of tickets {key['id']}", opened[at:at + 32])
assert len(keys) == 2, keys

# The files whose purpose is to hold a secret, for their user only.
own = [state / name for name in ("secrets.key", "names.key", "ca.key", "admin.token")]
own += [work / f"{name}/var/longhaul/identity-{name}.json" for name in "ab"]
ok = True
for path in own:
    mode = path.stat().st_mode & 0o7777
    if mode != 0o600:
        ok = False
        print(f"FAIL  {path.relative_to(work)} has the mode {mode:o}")
places = {}
for top in ("head/var", "a/var", "b/var", "head/redis"):
    for path in (work / top).rglob("*"):
        if path.is_file() and path not in own:
            places[str(path.relative_to(work))] = path.read_bytes()
for path in work.glob("*/*.log"):
    places[str(path.relative_to(work))] = path.read_bytes()
for name, pid in processes.items():
    for part in ("environ", "cmdline"):
        places[f"/proc of {name}: {part}"] = Path(f"/proc/{pid}/{part}").read_bytes()
    core = next(l for l in Path(f"/proc/{pid}/limits").read_text().splitlines() if l.startswith("Max core file size"))
    if core.split()[4:6] != ["0", "0"]:
        ok = False
        print(f"FAIL  {name} may write core dumps: {core}")
for name in ("head/master.log", "a/a.log", "b/b.log"):
    lines = sum(level in line for line in places[name].splitlines() for level in (b" DEBUG ", b" TRACE "))
    print(f"  {name} has {lines} lines of the levels debug and trace")
    if lines == 0:
        ok = False
        print(f"FAIL  {name} has not the level trace")
for place, content in sorted(places.items()):
    print(f"  searched: {place} ({len(content)} bytes)")
# The search finds what is there.
found = [place for place, content in places.items() if b"searched-for" in content]
print(f"  the id of a sync, as a control: in {len(found)} places")
if len(found) < 4:
    ok = False
    print("FAIL  the control was not found")
for name, forms in sorted(secrets.items()):
    found = [place for place, content in places.items() if any(form in content for form in forms)]
    if found:
        ok = False
    print(f"{'FAIL' if found else 'PASS'}  {name}: {'in ' + ', '.join(found) if found else 'nowhere'}")
sys.exit(not ok)
PY
}

for part in "${parts[@]}"; do
  case "$part" in setup | user | attacks | secrets) ;; *) echo "there is no part \`$part\`" >&2; exit 2 ;; esac
done
for part in "${parts[@]}"; do
  "$part"
  rm -rf "$work/head" "$work/a" "$work/b"
done
title "result"
[ -z "$failed" ] && pass "all" || { fail "see above"; exit 1; }
