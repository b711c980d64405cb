#!/usr/bin/env bash
# Hosts made of network namespaces, with several NICs of given speed, on this machine. Needs root.
#
#   netlab.sh up [--name X] [--hosts 2] [--nics 1g,1g] [--mtu 1500]   builds a lab
#   netlab.sh exec [--name X] HOST COMMAND…      runs a command on a host (1, 2, … or `mgmt`)
#   netlab.sh link [--name X] HOST NIC down|up   takes the cable of a NIC out, or puts it in
#   netlab.sh ip [--name X] HOST NIC             the address of a NIC; NIC `mgmt`: that on the control net
#   netlab.sh bytes [--name X] HOST NIC          what a NIC has sent and received: two counts
#   netlab.sh check [--name X]                   iperf3 over every NIC of hosts 1 and 2: alone, and together
#   netlab.sh down [--name X]                    stops what runs in the lab, and removes it
#   netlab.sh run [UP OPTIONS] -- COMMAND…       builds a lab, runs a command beside it with NETLAB set to
#                                                its name, and removes the lab however that ends
#
# NIC n of host h is `nic<n>`, address 10.77.<n>.<h>/24, on a switch of its own ("rail") with NIC n of the
# other hosts; each sends and receives at its speed (`200m`, `1g`, …; tbf in both directions). All hosts are
# also on a control net without limits, 10.77.0.<h> on `ctl0`; `mgmt` is the host 10.77.0.254 on it, for a
# master. `ip netns` lists the namespaces: X-h1, X-h2, …, X-mgmt, and X-switch with the bridges. Names may
# be chosen so that several labs run side by side.
set -euo pipefail

die() { echo "netlab: $*" >&2; exit 1; }
usage() { sed -n '2,22p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }

name="${NETLAB:-lab}" hosts=2 nics=1g,1g mtu=1500
command=${1:-}
[ -n "$command" ] || usage
shift
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name=$2; shift 2 ;;
    --hosts) hosts=$2; shift 2 ;;
    --nics) nics=$2; shift 2 ;;
    --mtu) mtu=$2; shift 2 ;;
    --) shift; break ;;
    -*) usage ;;
    *) break ;;
  esac
done
[[ $name =~ ^[a-z][a-z0-9-]{0,30}$ ]] || die "a lab is named with up to 31 of a-z, 0-9 and -, not \`$name\`"
[ "$(id -u)" = 0 ] || die "network namespaces need root: run it as root, or with sudo"
for program in ip tc; do
  command -v "$program" >/dev/null || die "\`$program\` is missing: install iproute2"
done

exists() { [ -e "/var/run/netns/$name-$1" ]; }
inside() { local host=$1; shift; ip netns exec "$name-$host" "$@"; }
host_of() { case "$1" in mgmt | switch) echo "$1" ;; *) echo "h$1" ;; esac; }

# A token bucket: short enough that a queue is not seconds, long enough for full speed at our tick rate.
limit() { # namespace interface speed
  local number=${3%[mg]} burst
  case "$3" in
    *m) burst=$((number * 1000000 / 8 / 250)) ;;
    *g) burst=$((number * 1000000000 / 8 / 250)) ;;
    *) die "a speed is like 200m or 1g, not \`$3\`" ;;
  esac
  # One segment that the sender did not cut must fit.
  [ "$burst" -ge 131072 ] || burst=131072
  inside "$1" tc qdisc add dev "$2" root tbf rate "${3}bit" burst "$burst" latency 20ms
}

# A cable between `ours` on a host and the bridge.
cable() { # host ours bridge port address
  ip -n "$name-switch" link add "$4" mtu "$mtu" type veth peer name "$2" mtu "$mtu" netns "$name-$1"
  ip -n "$name-switch" link set "$4" master "$3" up
  ip -n "$name-$1" addr add "$5/24" dev "$2"
  ip -n "$name-$1" link set "$2" up
}

bridge() {
  ip -n "$name-switch" link add "$1" mtu "$mtu" type bridge stp_state 0 forward_delay 0
  ip -n "$name-switch" link set "$1" up
}

up() {
  [[ $hosts =~ ^[0-9]+$ && $hosts -ge 1 && $hosts -le 200 ]] || die "--hosts is 1 to 200, not \`$hosts\`"
  [[ $nics =~ ^[0-9]+[mg](,[0-9]+[mg])*$ ]] || die "--nics is like 1g,1g or 200m,1g, not \`$nics\`"
  ! exists switch || die "lab $name is there already: \`netlab.sh down --name $name\` removes it"
  # What is half built goes away again.
  trap 'down' ERR
  trap 'down; exit 130' INT TERM
  local speeds host nic
  IFS=, read -ra speeds <<<"$nics"
  local spaces=(switch mgmt)
  for host in $(seq "$hosts"); do spaces+=("h$host"); done
  for host in "${spaces[@]}"; do
    ip netns add "$name-$host"
    ip -n "$name-$host" link set lo up
    # Addresses answer on their own NIC only, and replies may leave by another one than the kernel's first.
    inside "$host" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 \
      net.ipv4.conf.all.rp_filter=2
  done
  bridge control
  cable mgmt ctl0 control mgmt 10.77.0.254
  for nic in "${!speeds[@]}"; do bridge "rail$((nic + 1))"; done
  for host in $(seq "$hosts"); do
    cable "h$host" ctl0 control "c$host" "10.77.0.$host"
    for nic in "${!speeds[@]}"; do
      local n=$((nic + 1))
      cable "h$host" "nic$n" "rail$n" "p$host.$n" "10.77.$n.$host"
      limit "h$host" "nic$n" "${speeds[$nic]}"
      limit switch "p$host.$n" "${speeds[$nic]}"
    done
  done
  trap - ERR INT TERM
}

down() {
  local space pids
  for space in $(ip netns list | awk '{print $1}' | grep -E "^$name-(h[0-9]+|mgmt|switch)$" || true); do
    pids=$(ip netns pids "$space" 2>/dev/null || true)
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
    ip netns del "$space" 2>/dev/null || true
  done
}

received() { # JSON of iperf3 on stdin
  awk '/"sum_received"/ { found = 1 } found && /"bits_per_second"/ { gsub(/[^0-9.e+]/, "", $2); printf "%.0f\n", $2 / 1e6; exit }'
}

check() {
  command -v iperf3 >/dev/null || die "\`iperf3\` is missing: install it (apt-get install iperf3)"
  exists h2 || die "the check is between hosts 1 and 2 of a lab: build one with \`netlab.sh up --name $name\`"
  local nic total=0 count dir
  count=$(ip -n "$name-h1" -o link | grep -c ' nic[0-9]*@')
  dir=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$dir'" EXIT
  for nic in $(seq "$count"); do
    inside h2 iperf3 --server --daemon --bind "10.77.$nic.2" --port 5201 --pidfile "$dir/$nic.pid" >/dev/null
  done
  sleep 0.3
  for nic in $(seq "$count"); do
    echo "nic$nic alone: $(inside h1 iperf3 --client "10.77.$nic.2" --time 3 --omit 1 --json | received) Mb/s"
  done
  for nic in $(seq "$count"); do
    inside h1 iperf3 --client "10.77.$nic.2" --time 3 --omit 1 --json >"$dir/$nic" &
  done
  wait
  for nic in $(seq "$count"); do
    total=$((total + $(received <"$dir/$nic")))
    kill "$(tr -d '\0' <"$dir/$nic.pid")" 2>/dev/null || true
  done
  echo "together: $total Mb/s"
}

case "$command" in
  up) [ $# = 0 ] || usage; up ;;
  down) [ $# = 0 ] || usage; down ;;
  exec)
    [ $# -ge 2 ] || usage
    space=$(host_of "$1"); shift
    exists "$space" || die "lab $name has no host \`${space#h}\`: \`netlab.sh up --name $name\` builds it"
    exec ip netns exec "$name-$space" "$@"
    ;;
  link)
    [ $# = 3 ] || usage
    case "$3" in up | down) ;; *) usage ;; esac
    # At the host: its routes go with it, as with a cable.
    ip -n "$name-h$1" link set "nic$2" "$3"
    ;;
  ip)
    [ $# = 2 ] || usage
    case "$1/$2" in mgmt/*) echo 10.77.0.254 ;; */mgmt) echo "10.77.0.$1" ;; *) echo "10.77.$2.$1" ;; esac
    ;;
  bytes)
    [ $# = 2 ] || usage
    inside "h$1" cat "/sys/class/net/nic$2/statistics/tx_bytes" "/sys/class/net/nic$2/statistics/rx_bytes" | xargs
    ;;
  check) [ $# = 0 ] || usage; check ;;
  run)
    [ $# -ge 1 ] || usage
    [ -n "${NETLAB:-}" ] || [ "$name" != lab ] || name="lab-$$"
    up
    trap down EXIT
    trap 'exit 130' INT TERM
    NETLAB=$name "$@"
    ;;
  *) usage ;;
esac
