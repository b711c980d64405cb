#!/usr/bin/env bash
# What several NICs give, between hosts made of network namespaces (netlab.sh), in paired rounds: prints
# medians and ratios, and PASS or FAIL for each row. Needs root, iperf3 and python3, and a quiet machine.
#
#   scripts/acceptance-nics.sh --ctl RELEASE_BINARY [--rounds 5] [--row two|four|pairs|outage|tls] [--dir DIR]
#     [--unit 1000]
#
#   two      two 1 Gb/s NICs: at least 1.95 times one of them, and 97 % of two iperf3
#   four     NICs of 1, 1, 2 and 4 Gb/s: at least 95 % of what iperf3 over each gives together
#   pairs    one file, two source and two destination agents, each with one 1 Gb/s NIC: 1.9 times one pair
#   outage   one of two NICs away for 5 s in mid-copy: no task failed, the other never still for 2 s, both
#            used again within 10 s
#   tls      over two 1 Gb/s NICs TLS between the agents takes at most 1.03 times the time without it, with and
#            without encryption of content
#
# --unit says how many Mb/s stand for 1 Gb/s (and scales the data), for machines that cannot do 8 Gb/s.
set -euo pipefail

ctl="" rounds=5 rows=() dir=/dev/shm unit=1000
while [ $# -gt 0 ]; do
  case "$1" in
    --ctl) ctl=$(realpath "$2"); shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --row) rows+=("$2"); shift 2 ;;
    --dir) dir=$2; shift 2 ;;
    --unit) unit=$2; shift 2 ;;
    *) sed -n '2,17p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
  esac
done
[ -x "$ctl" ] || { echo "--ctl must name the program to be measured" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 1; }
[ "${#rows[@]}" -gt 0 ] || rows=(two four pairs outage tls)
programs=(python3)
[[ " ${rows[*]} " != *" two "* && " ${rows[*]} " != *" four "* ]] || programs+=(iperf3)
for program in "${programs[@]}"; do
  command -v "$program" >/dev/null || { echo "\`$program\` is missing" >&2; exit 1; }
done

here=$(cd "$(dirname "$0")" && pwd)
export NETLAB="acc-$$"
work=$(mktemp -d "$dir/nics.XXXXXX")
lab() { "$here/netlab.sh" "$@"; }
stop() {
  lab down
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM
. "$here/acceptance-common.sh"

# --- services ---------------------------------------------------------------------------------------
# $! must be the program itself, so `lab exec` is of no use here.
# How agents reach the master and each other: plain, tls, clear (TLS without encryption of content).
access=plain
# serve NICS HOST:ROLE…: a master, and an agent on each host with the first NICS NICs.
serve() {
  local nics=$1 host role n endpoints
  shift
  mkdir -p "$work/src" "$work/dst" "$work/state"
  {
    printf 'listen: [127.0.0.1:8888, 10.77.0.254:8888]\ndata_dir: %s\n' "$work/state/master"
    [ "$access" != plain ] || echo 'insecure: true'
  } >"$work/state/master.yml"
  {
    [ "$access" = plain ] && echo 'master_url: http://10.77.0.254:8888' || echo 'master_url: https://10.77.0.254:8888'
    [ "$access" != clear ] || echo 'encrypt_content: false'
    printf 'data_dir: %s\nworkers:\n' "$work/state/agents"
  } >"$work/state/agents.yml"
  ip netns exec "$NETLAB-mgmt" "$ctl" master --config "$work/state/master.yml" 2>>"$work/master.log" &
  pids=($!)
  await 30 "the master leads" leads
  for agent in "$@"; do
    host=${agent%:*} role=${agent#*:} endpoints=""
    for n in $(seq "$nics"); do endpoints+="{iface: nic$n, address: 10.77.$n.$host}, "; done
    printf '  - worker_id: h%s\n    storage_paths: [%s]\n    network: { data_plane_endpoints: [%s] }\n' \
      "$host" "$work/$role" "$endpoints" >>"$work/state/agents.yml"
    [ "$access" = plain ] || {
      (umask 077 && on_master token create --join --worker "h$host" --path "$work/$role" \
        >"$work/state/h$host.token" 2>>"$work/agents.log")
      printf '    join_token_file: %s\n' "$work/state/h$host.token" >>"$work/state/agents.yml"
    }
  done
  for agent in "$@"; do
    ip netns exec "$NETLAB-h${agent%:*}" "$ctl" agent --worker-id "h${agent%:*}" --config "$work/state/agents.yml" \
      2>>"$work/agents.log" &
    pids+=($!)
  done
  await 60 "all agents are connected" are_connected $#
}

leads() { on_master master status >/dev/null 2>&1; }
are_connected() { [ "$(on_master workers list --quiet 2>/dev/null | wc -l)" = "$1" ]; }

end() {
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  rm -rf "$work/state" "${work:?}/dst"
}

on_master() { CTL_MASTER_URL=http://127.0.0.1:8888 lab exec mgmt "$ctl" "$@"; }

data() { # MiB
  mkdir -p "$work/src"
  head -c "$(($1 << 20))" /dev/urandom >"$work/src/file"
}

# copy: the seconds that a sync of src to dst takes, from its submission to its end.
copy() {
  rm -rf "${work:?}"/dst/* "$work"/dst/.[!.]* 2>/dev/null || true
  local since
  since=$(date +%s.%N)
  on_master sync submit "$work/src" "$work/dst" --wait --quiet >/dev/null 2>"$work/state/submit.log" ||
    { cat "$work/state/submit.log" "$work/agents.log" >&2; exit 1; }
  awk -v a="$since" -v b="$(date +%s.%N)" 'BEGIN { printf "%.3f\n", b - a }'
  cmp -s "$work/src/file" "$work/dst/file" || { echo "the copy differs" >&2; exit 1; }
}

# iperf NICS SECONDS: what iperf3 moves over all NICs at a time, in Mb/s.
iperf() {
  local n all=()
  for n in $(seq "$1"); do
    lab exec 2 iperf3 --server --one-off --bind "10.77.$n.2" >/dev/null &
  done
  sleep 0.3
  for n in $(seq "$1"); do
    lab exec 1 iperf3 --client "10.77.$n.2" --time "$2" --omit 1 --json >"$work/iperf.$n" &
    all+=($!)
  done
  wait "${all[@]}"
  cat "$work"/iperf.* | python3 -c '
import json, sys
text, total, decoder = sys.stdin.read(), 0, json.JSONDecoder()
while text.strip():
    one, end = decoder.raw_decode(text.lstrip())
    text, total = text.lstrip()[end:], total + one["end"]["sum_received"]["bits_per_second"]
print(round(total / 1e6, 1))'
  rm -f "$work"/iperf.*
}

speed() { awk -v mib="$1" -v s="$2" 'BEGIN { printf "%.1f\n", mib * 1048576 * 8 / s / 1e6 }'; }

# --- rows -------------------------------------------------------------------------------------------
two() {
  local size=$((1536 * unit / 1000)) one=() both=() peers=()
  data "$size"
  lab up --hosts 2 --nics "${unit}m,${unit}m"
  for _ in $(seq "$rounds"); do
    serve 1 1:src 2:dst; one+=("$(copy)"); end
    serve 2 1:src 2:dst; both+=("$(copy)"); end
    peers+=("$(iperf 2 5)")
  done
  lab down
  local a b c
  a=$(median_of "${one[@]}") b=$(median_of "${both[@]}")
  c=$(median_of "${peers[@]}")
  echo "two NICs of $unit Mb/s, $size MiB: one ${one[*]} s, both ${both[*]} s, two iperf3 ${peers[*]} Mb/s"
  at_least "two NICs against one" "$(ratio "$a" "$b")" 1.95
  at_least "two NICs against two iperf3" "$(ratio "$(speed "$size" "$b")" "$c")" 0.97
}

four() {
  local size=$((8192 * unit / 1000)) all=() peers=()
  data "$size"
  lab up --hosts 2 --nics "${unit}m,${unit}m,$((2 * unit))m,$((4 * unit))m"
  for _ in $(seq "$rounds"); do
    serve 4 1:src 2:dst; all+=("$(copy)"); end
    peers+=("$(iperf 4 5)")
  done
  lab down
  local a c
  a=$(median_of "${all[@]}") c=$(median_of "${peers[@]}")
  echo "NICs of 1, 1, 2 and 4 times $unit Mb/s, $size MiB: ${all[*]} s ($(speed "$size" "$a") Mb/s), iperf3 ${peers[*]} Mb/s"
  at_least "four NICs against their sum" "$(ratio "$(speed "$size" "$a")" "$c")" 0.95
}

tls() {
  local size=$((3072 * unit / 1000)) plain=() encrypted=() clear=()
  data "$size"
  lab up --hosts 2 --nics "${unit}m,${unit}m"
  for _ in $(seq "$rounds"); do
    access=plain; serve 2 1:src 2:dst; plain+=("$(copy)"); end
    access=tls; serve 2 1:src 2:dst; encrypted+=("$(copy)"); end
    access=clear; serve 2 1:src 2:dst; clear+=("$(copy)"); end
  done
  access=plain
  lab down
  echo "two NICs of $unit Mb/s, $size MiB: plain ${plain[*]} s, TLS ${encrypted[*]} s, clear content ${clear[*]} s"
  at_most "TLS against plain" "$(ratio "$(median_of "${encrypted[@]}")" "$(median_of "${plain[@]}")")" 1.03
  at_most "TLS with clear content against plain" "$(ratio "$(median_of "${clear[@]}")" "$(median_of "${plain[@]}")")" 1.03
}

pairs() {
  local size=$((1536 * unit / 1000)) one=() both=()
  data "$size"
  lab up --hosts 4 --nics "${unit}m"
  for _ in $(seq "$rounds"); do
    serve 1 1:src 2:dst; one+=("$(copy)"); end
    serve 1 1:src 2:dst 3:src 4:dst; both+=("$(copy)"); end
  done
  lab down
  echo "one file of $size MiB: one pair ${one[*]} s, two pairs ${both[*]} s"
  at_least "two pairs against one" \
    "$(ratio "$(median_of "${one[@]}")" "$(median_of "${both[@]}")")" 1.9
}

outage() {
  local round
  data "$((3584 * unit / 1000))"
  lab up --hosts 2 --nics "${unit}m,${unit}m"
  for round in $(seq "$rounds"); do
    serve 2 1:src 2:dst
    copy >"$work/seconds" &
    local copying=$!
    python3 - "$here/netlab.sh" "$NETLAB" "$unit" >"$work/outage" <<'PY'
import subprocess, sys, time
netlab, name, unit = sys.argv[1], sys.argv[2], int(sys.argv[3])
mib = (1 << 20) * unit // 1000
def sent(nic):
    path = f"/sys/class/net/nic{nic}/statistics/tx_bytes"
    return int(subprocess.check_output(["ip", "netns", "exec", f"{name}-h1", "cat", path]))
def link(state):
    subprocess.check_call(["ip", "-n", f"{name}-h1", "link", "set", "nic2", state])
begun = [sent(1), sent(2)]
while min(sent(1) - begun[0], sent(2) - begun[1]) < 100 * mib:
    time.sleep(0.02)
link("down")
down, still, last, since = time.time(), 0, sent(1), time.time()
while time.time() < down + 5:
    time.sleep(0.05)
    now = sent(1)
    if now > last + mib:
        still, last, since = max(still, time.time() - since), now, time.time()
still = max(still, time.time() - since)
link("up")
up, before = time.time(), (sent(1), sent(2))
while min(sent(1) - before[0], sent(2) - before[1]) < 16 * mib and time.time() < up + 30:
    time.sleep(0.02)
print(f"{still:.2f} {time.time() - up:.2f}")
PY
    wait "$copying"
    local still again retries
    read -r still again <"$work/outage"
    retries=$(on_master sync status -o json | python3 -c '
import json, sys
syncs = json.load(sys.stdin)
syncs = syncs if isinstance(syncs, list) else syncs.get("syncs", [syncs])
print(sum(s["retries"] + s["files_failed"] for s in syncs))')
    echo "outage, round $round: $(cat "$work/seconds") s in all"
    at_most "tasks failed" "$retries" 0
    at_most "longest stall of the other NIC, in seconds" "$still" 2
    at_most "seconds until both were used again" "$again" 10
    end
  done
  lab down
}

for row in "${rows[@]}"; do
  case "$row" in
    two | four | pairs | outage | tls) "$row" ;;
    *) echo "there is no row \`$row\`" >&2; exit 2 ;;
  esac
done
[ -z "$failed" ]
