# Bare hosts for measurements; sourced by run and filter, which have $tunnels and the array children.
# Nothing that runs in the background may hold the caller's files open.
background() { "$@" >/dev/null 2>&1 </dev/null 7>&- 8>&- 9>&- & children+=($!); }

# Bare hosts: namespaces that live as long as a process.
space() { # name
  background unshare --net sleep 3600
  local pid=${children[-1]}
  until [ -e "/proc/$pid/ns/net" ] && [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.01; done
  printf -v "$1" %s "$pid"
}
at() { nsenter --net="/proc/$1/ns/net" "${@:2}"; }
bare() { # prefix inner-net: two hosts with a workload each, joined by a switch as those of the lab are
  space "$1_h1"; space "$1_h2"; space "$1_p1"; space "$1_p2"; space "$1_sw"
  local sw=$1_sw
  at "${!sw}" ip link add br0 type bridge
  at "${!sw}" ip link set br0 up
  for i in 1 2; do
    local h=$1_h$i p=$1_p$i
    at "${!sw}" ip link add port$i type veth peer name eth0 netns "${!h}"
    at "${!sw}" ip link set port$i master br0 up
    at "${!h}" sysctl -qw net.ipv4.ip_forward=1
    at "${!h}" ip addr add 172.18.0.$i/24 dev eth0
    at "${!h}" ip link set eth0 up
    at "${!h}" ip link add cali1 type veth peer name eth0 netns "${!p}"
    at "${!h}" ip addr add 169.254.1.1/32 dev cali1
    at "${!h}" ip link set cali1 up
    at "${!h}" ip route add $2.$i.2 dev cali1
    at "${!p}" ip addr add $2.$i.2/32 dev eth0
    at "${!p}" ip link set eth0 mtu 1450 up
    at "${!p}" ip route add 169.254.1.1 dev eth0
    at "${!p}" ip route add default via 169.254.1.1
  done
  local p=$1_p2
  background ${pin:-} nsenter --net="/proc/${!p}/ns/net" "$tunnels" serve
}
