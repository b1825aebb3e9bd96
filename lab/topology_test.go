package lab

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestBadTopologies: each input of the archive has its error, word for word.
func TestBadTopologies(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/bad.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(archive.Files); i += 2 {
		in, want := archive.Files[i], archive.Files[i+1]
		t.Run(in.Name, func(t *testing.T) {
			_, err := ParseTopology(in.Data)
			got := "accepted\n"
			if err != nil {
				got = err.Error() + "\n"
			}
			if *update {
				archive.Files[i+1].Data = []byte(got)
			} else if got != string(want.Data) {
				t.Errorf("got  %swant %s", got, want.Data)
			}
			if err == nil || strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("want one line of error, got %v", err)
			}
		})
	}
	if *update {
		if err := os.WriteFile("testdata/bad.txtar", txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPlansAndGraphs: topologies with their addresses and pictures.
func TestPlansAndGraphs(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/plans.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range archive.Files {
		name, isInput := strings.CutSuffix(f.Name, ".yaml")
		if !isInput {
			continue
		}
		t.Run(name, func(t *testing.T) {
			top, err := ParseTopology(f.Data)
			if err != nil {
				t.Fatal(err)
			}
			p, err := NewPlan(top)
			if err != nil {
				t.Fatal(err)
			}
			st := planned(top, p)
			for j, got := range []string{planText(p), st.Graph(p), st.Dot(p)} {
				if *update {
					archive.Files[i+1+j].Data = []byte(got)
				} else if diff := cmp.Diff(string(archive.Files[i+1+j].Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", archive.Files[i+1+j].Name, diff)
				}
			}
		})
	}
	if *update {
		if err := os.WriteFile("testdata/plans.txtar", txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// planned is the status of a lab as it would be when all went well.
func planned(top Topology, p *Plan) Status {
	st := Status{Name: "golden"}
	for _, h := range p.Hosts {
		n := NodeStatus{Name: h.Name, Running: true, Addresses: h.Ports[0].Addresses}
		st.Hosts = append(st.Hosts, HostStatus{NodeStatus: n, Subnet: h.Ports[0].Subnet, AgentPID: 1, Ready: true})
	}
	for i, c := range top.Containers {
		a := netip.AddrFrom4([4]byte{192, 168, byte(i), 64})
		st.Containers = append(st.Containers, ContainerStatus{Container: c, Attached: true, PID: 1, Addresses: []netip.Addr{a}})
	}
	return st
}

func planText(p *Plan) string {
	var b strings.Builder
	for _, sw := range p.Switches {
		fmt.Fprintf(&b, "switch %s %v mtu %d gateways %v\n", sw.Subnet, sw.Prefixes, sw.MTU, sw.Gateways)
	}
	for _, nodes := range [][]NodePlan{p.Routers, p.Hosts} {
		for _, n := range nodes {
			fmt.Fprintf(&b, "node %s\n", n.Name)
			for _, port := range n.Ports {
				fmt.Fprintf(&b, "  %s on %s %v %s mtu %d\n", port.Device, port.Subnet, port.Addresses, port.MAC, port.MTU)
			}
			for _, r := range n.Routes {
				fmt.Fprintf(&b, "  %s via %s\n", r.Dst, r.Via)
			}
		}
	}
	return b.String()
}

// TestPlanProperties: whatever the topology, no address is given twice, each
// lies in its subnet, and every next hop is an address of that subnet.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		top := drawTopology(t)
		p, err := NewPlan(top)
		if err != nil {
			t.Skip(err) // a subnet that is too small is refused
		}
		seen := map[netip.Addr]bool{}
		nets := map[string][]netip.Prefix{}
		take := func(subnet string, list []netip.Prefix) {
			for i, a := range list {
				if seen[a.Addr()] {
					t.Fatalf("%s is given twice", a.Addr())
				}
				seen[a.Addr()] = true
				if a.Masked() != nets[subnet][i] || a.Addr() == nets[subnet][i].Addr() || a.Addr() == lastAddr(nets[subnet][i]) {
					t.Fatalf("%s is not a host address of %s", a, nets[subnet][i])
				}
			}
		}
		for _, sw := range p.Switches {
			nets[sw.Subnet] = sw.Prefixes
			take(sw.Subnet, sw.Gateways)
		}
		for _, n := range append(p.Routers, p.Hosts...) {
			for _, port := range n.Ports {
				take(port.Subnet, port.Addresses)
			}
		}
		for _, n := range append(p.Routers, p.Hosts...) {
			for _, r := range n.Routes {
				if !seen[r.Via] {
					t.Fatalf("%s has a route via %s, which nobody has", n.Name, r.Via)
				}
			}
		}
	})
}

func drawTopology(t *rapid.T) Topology {
	var top Topology
	n := rapid.IntRange(1, 5).Draw(t, "subnets")
	for i := range n {
		bits := rapid.IntRange(20, 29).Draw(t, "bits")
		s := Subnet{Name: fmt.Sprintf("s%d", i), CIDR: fmt.Sprintf("10.%d.0.0/%d", i, bits)}
		if rapid.Bool().Draw(t, "v6") {
			s.CIDR6 = fmt.Sprintf("fd00:%d::/%d", i, rapid.IntRange(64, 124).Draw(t, "bits6"))
		}
		top.Subnets = append(top.Subnets, s)
	}
	subnet := rapid.IntRange(0, n-1)
	for i := range rapid.IntRange(0, 4).Draw(t, "routers") {
		r := Router{Name: fmt.Sprintf("r%d", i)}
		for _, s := range rapid.SliceOfNDistinct(subnet, 1, -1, rapid.ID[int]).Draw(t, "joins") {
			r.Subnets = append(r.Subnets, top.Subnets[s].Name)
		}
		top.Routers = append(top.Routers, r)
	}
	for i := range rapid.IntRange(1, 10).Draw(t, "hosts") {
		top.Hosts = append(top.Hosts, Host{Name: fmt.Sprintf("h%d", i), Subnet: top.Subnets[subnet.Draw(t, "at")].Name})
	}
	return top
}

func FuzzParseTopology(f *testing.F) {
	archive, err := txtar.ParseFile("testdata/plans.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range archive.Files {
		if strings.HasSuffix(file.Name, ".yaml") {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		top, err := ParseTopology(data)
		if err != nil {
			return
		}
		if _, err := NewPlan(top); err != nil {
			t.Errorf("accepted, but there is no plan: %v", err)
		}
	})
}

func TestMountsBelow(t *testing.T) {
	const info = `22 27 0:21 / / rw - ext4 /dev/vda rw
23 22 0:22 / /etc/hosts rw - ext4 /dev/vda rw
24 22 0:22 / /etc/a\040b rw - tmpfs t rw
25 24 0:22 / /etc/a\040b/c rw - tmpfs t rw
26 22 0:22 / /etcetera rw - tmpfs t rw
27 22 0:22 / /etc/hosts rw - ext4 /dev/vda rw
`
	want := []string{"/etc/a b", "/etc/hosts"}
	if diff := cmp.Diff(want, parseMountsBelow(info, "/etc")); diff != "" {
		t.Error(diff)
	}
}

func TestInjectWorkload(t *testing.T) {
	const conf = `{"cniVersion":"1.0.0","name":"maneki","plugins":[{"type":"maneki-cni","mtu":1440,"args":{"other":1}},{"type":"portmap"}]}`
	got, err := injectWorkload([]byte(conf), Container{Name: "c1", Namespace: "prod", Labels: map[string]string{"app": "web"}})
	if err != nil {
		t.Fatal(err)
	}
	own := `{"namespace":"prod","name":"c1","labels":{"app":"web"}}`
	want := `{"cniVersion":"1.0.0","name":"maneki","plugins":[{"args":{"maneki.net":` + own +
		`,"other":1},"mtu":1440,"type":"maneki-cni"},{"args":{"maneki.net":` + own + `},"type":"portmap"}]}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "[]", `{"plugins":{}}`, `{"plugins":[{"args":[]}]}`} {
		if _, err := injectWorkload([]byte(bad), Container{}); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestParsePauseArgs(t *testing.T) {
	argv := append([]string{"/usr/bin/maneki"}, pauseArgs("lab7", "h1", KindHost)...)
	if lab, member, ok := parsePauseArgs(argv); !ok || lab != "lab7" || member != "h1" {
		t.Errorf("own arguments are not recognised: %q %q %v", lab, member, ok)
	}
	if _, _, ok := parsePauseArgs([]string{"vi", "lab", "pause", "--lab", "x"}); ok {
		t.Error("a foreign command is taken for a pause process")
	}
}
