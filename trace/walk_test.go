package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// net2 is two hosts with a container each: h1 has c1, h2 has c2, VXLAN between
// them, one switch.
type net2 struct {
	views  map[string]*View
	wanted map[string]*View
	out    Link // the switch's port of h2
	agent  string
}

func (n *net2) View(name string) (*View, error) {
	if v := n.views[name]; v != nil {
		return v, nil
	}
	return nil, errors.New("no such member")
}

func (n *net2) Wanted(at *View, _ netip.Addr) *View { return n.wanted[at.Name] }

func (n *net2) Agent(string) string { return n.agent }

func (n *net2) Across(from *View, out Link, next, _ netip.Addr) (Crossing, error) {
	switch {
	case from.Name == "c1":
		return Crossing{To: "h1", Dev: "cali1"}, nil
	case from.Name == "c2":
		return Crossing{To: "h2", Dev: "cali2"}, nil
	case out.Name == "cali1":
		return Crossing{To: "c1", Dev: "eth0"}, nil
	case out.Name == "cali2":
		return Crossing{To: "c2", Dev: "eth0"}, nil
	}
	for _, h := range []string{"h1", "h2"} {
		if l, ok := n.views[h].Owner(next); ok {
			port := Link{Name: from.Name, Up: true, MTU: 1500}
			return Crossing{Bridge: &Bridge{Name: "sw", In: port, Out: n.out}, To: h, Dev: l.Name}, nil
		}
	}
	return Crossing{}, fmt.Errorf("nobody has %s", next)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// route parses the words of ip-route(8) that the test uses.
func route(line string) Route {
	w := strings.Fields(line)
	r := Route{Type: Unicast, Table: tableMain, Line: line}
	if w[0] == "blackhole" {
		r.Type, w = Blackhole, w[1:]
	}
	if w[0] == "default" {
		w[0] = "0.0.0.0/0"
	}
	if !strings.Contains(w[0], "/") {
		w[0] += "/32"
	}
	r.Dst = netip.MustParsePrefix(w[0])
	for i := 1; i+1 < len(w); i++ {
		switch w[i] {
		case "via":
			r.Gateway = addr(w[i+1])
		case "dev":
			r.Dev = w[i+1]
		}
	}
	return r
}

func newNet2() *net2 {
	up := func(name, kind string, mtu int, addrs ...string) Link {
		l := Link{Name: name, Type: kind, Up: true, Carrier: true, MTU: mtu, ProxyARP: true}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
		}
		return l
	}
	host := func(i, j int, mac string) *View {
		vx := up("vxlan.calico", "vxlan", 1450, fmt.Sprintf("10.0.%d.0/32", i))
		vx.VNI, vx.Port, vx.Local = 4096, 4789, addr(fmt.Sprintf("172.18.0.%d", i))
		return &View{
			Name: fmt.Sprintf("h%d", i), Kind: Host, Seen: Kernel,
			Links: []Link{up("eth0", "veth", 1500, fmt.Sprintf("172.18.0.%d/24", i)), vx, up(fmt.Sprintf("cali%d", i), "veth", 1450)},
			Routes: []Route{
				route("default via 172.18.0.254 dev eth0"),
				route("172.18.0.0/24 dev eth0 proto kernel scope link"),
				route(fmt.Sprintf("blackhole 10.0.%d.0/26 proto 80", i)),
				route(fmt.Sprintf("10.0.%d.5 dev cali%d scope link", i, i)),
				route(fmt.Sprintf("10.0.%d.0/26 via 10.0.%d.0 dev vxlan.calico proto 80 onlink", j, j)),
			},
			Rules:      []Rule{{Priority: 32766, Table: tableMain}},
			Neighbours: []Neighbour{{"vxlan.calico", addr(fmt.Sprintf("10.0.%d.0", j)), mac, "PERMANENT"}},
			FDB:        []FDBEntry{{"vxlan.calico", mac, addr(fmt.Sprintf("172.18.0.%d", j))}},
		}
	}
	container := func(i int) *View {
		return &View{
			Name: fmt.Sprintf("c%d", i), Kind: Container, Seen: Kernel, Links: []Link{up("eth0", "veth", 1450, fmt.Sprintf("10.0.%d.5/32", i))},
			Routes: []Route{route("default via 169.254.1.1 dev eth0")}, NoForward4: true,
		}
	}
	n := &net2{
		views: map[string]*View{
			"h1": host(1, 2, "66:00:00:00:00:02"), "h2": host(2, 1, "66:00:00:00:00:01"), "c1": container(1), "c2": container(2),
		},
		wanted: map[string]*View{"h1": host(1, 2, "66:00:00:00:00:02"), "h2": host(2, 1, "66:00:00:00:00:01")},
		out:    Link{Name: "h2", Up: true, MTU: 1500},
		agent:  AgentGone,
	}
	return n
}

func link(v *View, name string) *Link {
	for i := range v.Links {
		if v.Links[i].Name == name {
			return &v.Links[i]
		}
	}
	return nil
}

func dropRoute(v *View, dst string) {
	var kept []Route
	for _, r := range v.Routes {
		if r.Dst.String() != dst {
			kept = append(kept, r)
		}
	}
	v.Routes = kept
}

func TestWalk(t *testing.T) {
	tests := []struct {
		name   string
		size   int
		damage func(n *net2)
		want   string
	}{
		{"whole", 0, func(*net2) {}, "Delivered. Packets of up to 1450 bytes pass whole."},
		{"route deleted", 0, func(n *net2) {
			dropRoute(n.views["h1"], "10.0.2.0/26")
		}, "Lost at hop 6, neighbour of h1: nobody has 172.18.0.254.\n" +
			"The kernel of h1 lacks what the datastore wants: 10.0.2.0/26 via 10.0.2.0 dev vxlan.calico proto 80 onlink.\n" +
			"The agent of h1 is not running: nothing puts it back until it is started."},
		{"no route at all", 0, func(n *net2) {
			dropRoute(n.views["h1"], "10.0.2.0/26")
			dropRoute(n.views["h1"], "0.0.0.0/0")
		}, "Lost at hop 4, route of h1: the network is unreachable.\n" +
			"The kernel of h1 lacks what the datastore wants: 10.0.2.0/26 via 10.0.2.0 dev vxlan.calico proto 80 onlink.\n" +
			"The agent of h1 is not running: nothing puts it back until it is started."},
		{"neighbour deleted, agent runs", 0, func(n *net2) {
			n.views["h1"].Neighbours, n.agent = nil, AgentRuns
		}, "Lost at hop 6, neighbour of h1: the device learns nothing: without the entry nobody is asked.\n" +
			"The agent of h1 runs and puts back what is its own; if it stays so, see `maneki node status` there."},
		{"FDB entry deleted", 0, func(n *net2) { n.views["h1"].FDB = nil }, "Lost at hop 7, fdb of h1: the device does not know which host has it.\n" +
			"The agent of h1 is not running: nothing puts it back until it is started."},
		{"forwarding off", 0, func(n *net2) { n.views["h1"].NoForward4 = true }, "Lost at hop 5, route of h1: h1 does not forward IPv4 packets (sysctl)."},
		{"interface down", 0, func(n *net2) { link(n.views["h2"], "eth0").Up = false }, "Lost at hop 13, link of h2: eth0 of h2 is down."},
		{"port down", 0, func(n *net2) { n.out.Up = false }, "Lost at hop 12, switch of sw: port h2 is down."},
		{"tunnel device of the other host deleted", 0, func(n *net2) {
			n.views["h2"].Links = n.views["h2"].Links[:1]
		}, "Lost at hop 14, tunnel of h2: nothing takes the packet out (ICMP port unreachable).\n" +
			"The agent of h2 is not running: nothing puts it back until it is started."},
		{"other VNI", 0, func(n *net2) { link(n.views["h2"], "vxlan.calico").VNI = 7 }, "Lost at hop 14, tunnel of h2: nothing takes the packet out (ICMP port unreachable).\n" +
			"The agent of h2 is not running: nothing puts it back until it is started."},
		{"no proxy ARP", 0, func(n *net2) { link(n.views["h1"], "cali1").ProxyARP = false }, "Lost at hop 3, veth of h1: h1 does not answer for 169.254.1.1 on cali1 (proxy_arp is 0): the container finds no gateway."},
		{"a switch with a small MTU", 0, func(n *net2) { n.out.MTU = 1400 }, "Lost at hop 12, switch of sw: 1500 bytes do not fit into 1400: a switch drops that without a word."},
		{"small enough for the switch", 1350, func(n *net2) { n.out.MTU = 1400 }, "Delivered. Packets of up to 1350 bytes pass whole."},
		{"underlay smaller than the tunnel", 0, func(n *net2) { link(n.views["h1"], "eth0").MTU = 1400 }, "Delivered. Packets of up to 1350 bytes pass whole."},
		{"larger than the interface", 1500, func(*net2) {}, `Lost at hop 1, route of c1: 1500 bytes do not fit into 1450 of eth0: the sender gets "message too long".`},
		{"tunnel smaller than the container", 0, func(n *net2) { link(n.views["h1"], "vxlan.calico").MTU = 1300 }, "Lost at hop 5, route of h1: 1450 bytes do not fit into 1300 of vxlan.calico: h1 answers that 1300 do (ICMP, fragmentation needed)."},
		{"the container is gone", 0, func(n *net2) { dropRoute(n.views["h2"], "10.0.2.5/32") }, "Lost at hop 16, route of h2: the route discards it.\n" +
			"The kernel of h2 lacks what the datastore wants: 10.0.2.5 dev cali2 scope link.\n" +
			"The agent of h2 is not running: nothing puts it back until it is started."},
		{"a loop", 0, func(n *net2) {
			n.views["h2"].Routes = append(n.views["h2"].Routes, route("10.0.2.5 via 172.18.0.1 dev eth0"))
			dropRoute(n.views["h2"], "10.0.2.5/32")
			n.views["h2"].Routes = append(n.views["h2"].Routes, route("10.0.2.5 via 172.18.0.1 dev eth0"))
			dropRoute(n.views["h1"], "10.0.2.0/26")
			n.views["h1"].Routes = append(n.views["h1"].Routes, route("10.0.2.0/26 via 172.18.0.2 dev eth0"))
			n.wanted = nil
		}, "Lost at hop 19, route of h2: the routes form a loop: it goes round until its TTL is 0."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNet2()
			tt.damage(n)
			from := Place{Name: "c1", Host: "h1", Kind: Container, Addr: addr("10.0.1.5")}
			to := Place{Name: "c2", Host: "h2", Kind: Container, Addr: addr("10.0.2.5")}
			r := Run(n, from, to, Options{Size: tt.size, OneWay: true})
			if got := r.There.Verdict(); got != tt.want {
				var b bytes.Buffer
				if err := r.Write(&b); err != nil {
					t.Fatal(err)
				}
				t.Errorf("got  %s\nwant %s\n%s", got, tt.want, b.String())
			}
			if r.OK() != strings.HasPrefix(tt.want, "Delivered") || (r.Err() == nil) != r.OK() {
				t.Errorf("OK %t, Err %v", r.OK(), r.Err())
			}
		})
	}
}

// TestReportIsJSON: the document has the same hops as the table.
func TestReportIsJSON(t *testing.T) {
	n := newNet2()
	r := Run(n, Place{Name: "c1", Host: "h1", Kind: Container, Addr: addr("10.0.1.5")}, Place{Name: "c2", Host: "h2", Kind: Container, Addr: addr("10.0.2.5")}, Options{})
	var b bytes.Buffer
	if err := r.Print(&b, true); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.There.Hops) != len(r.There.Hops) || back.Back == nil || !back.OK() || back.There.MTU != 1450 {
		t.Errorf("read back %+v", back)
	}
	tunnel := r.There.Hops[7]
	if tunnel.Object != "tunnel" || tunnel.Encap != "VXLAN 4096" || tunnel.MTU != 1450 || tunnel.Size != 1500 {
		t.Errorf("hop of the tunnel: %+v", tunnel)
	}
}
