package probe

import (
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/dataplane/nstest"
)

// texts are leftovers in words, those that are kept with a reason in brackets.
func texts(list []Leftover) []string {
	var out []string
	for _, l := range list {
		text := l.Of + " " + l.What
		if l.Keep != "" {
			text += " [" + l.Keep + "]"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

func TestFilesAndProcesses(t *testing.T) {
	root := t.TempDir()
	write(t, root, "etc/cni/net.d/10-flannel.conflist", "{}")
	write(t, root, "var/lib/calico/nodename", "n1")
	write(t, root, "proc/41/comm", "bird\n")
	write(t, root, "proc/42/comm", "sshd\n")
	var got []Leftover
	ns := nstest.New(t)
	ns.Do(func() {
		var err error
		if got, err = Leftovers(root); err != nil {
			t.Fatal(err)
		}
	})
	want := []string{
		"Calico file /var/lib/calico [files are not removed]",
		"Calico process bird (41) [processes are not stopped]",
		"flannel file /etc/cni/net.d/10-flannel.conflist [files are not removed]",
	}
	if !slices.Equal(texts(got), want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(texts(got), "\n"), strings.Join(want, "\n"))
	}
}

// leave is what a former flannel and a former Calico left, and things of others
// that look alike and must stay.
func leave(ns *nstest.NS) {
	for _, line := range []string{
		"ip link add eth0 type veth peer name port0",
		"ip addr add 172.18.0.2/24 dev eth0",
		"ip link set eth0 up",
		"ip link set port0 up",
		"ip link add flannel.1 type vxlan id 1 local 172.18.0.2 dev eth0 dstport 8472 nolearning",
		"ip addr add 10.244.3.0/32 dev flannel.1",
		"ip link set flannel.1 up",
		"ip neigh add 10.244.4.0 lladdr 66:00:00:00:00:04 dev flannel.1 nud permanent",
		"bridge fdb add 66:00:00:00:00:04 dst 172.18.0.4 dev flannel.1",
		"ip route add 10.244.4.0/24 via 10.244.4.0 dev flannel.1 onlink",
		"ip link add cni0 type bridge",
		"ip addr add 10.244.3.1/24 dev cni0",
		"ip route add 10.244.5.0/24 via 172.18.0.5",
		"ip route add 10.99.0.0/24 via 172.18.0.5",
		"ip route add 10.98.0.0/24 via 172.18.0.6 proto bird",
		"ip route add blackhole 10.98.1.0/26 proto bird",
		"ip route add blackhole 10.97.0.0/26 proto 80",
		"ip link add vxlan.calico type vxlan id 4096 local 172.18.0.2 dev eth0 dstport 4789 nolearning",
		"ip link add calib1 type veth peer name c1",
		"ip rule add fwmark 0x100000/0x100000 priority 99 table 1",
		"ip rule add fwmark 0x7 priority 98 table 7",
		"nft add table ip calico",
		"nft add table ip mine",
		"nft add table ip filter",
		"nft add chain ip filter FORWARD { type filter hook forward priority 0 ; }",
		"nft add chain ip filter cali-FORWARD",
		"nft add chain ip filter cali-cidr-block",
		"nft add chain ip filter FLANNEL-FWD",
		"nft add rule ip filter FORWARD jump cali-FORWARD",
		"nft add rule ip filter FORWARD ip saddr 10.0.0.0/8 accept",
		"nft add rule ip filter FORWARD jump FLANNEL-FWD",
		"nft add rule ip filter cali-FORWARD jump cali-cidr-block",
	} {
		w := strings.Fields(line)
		ns.Command(w[0], w[1:]...)
	}
}

// TestCleanRemovesLeftoversAndNothingElse makes them and has them removed.
func TestCleanRemovesLeftoversAndNothingElse(t *testing.T) {
	ns := nstest.New(t)
	leave(ns)
	root := t.TempDir()
	write(t, root, "run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n")
	var before []Leftover
	ns.Do(func() {
		var err error
		if before, err = Leftovers(root); err != nil {
			t.Fatal(err)
		}
	})
	want := []string{
		"Calico 1 interfaces of workloads (cali...) [they go with their workloads]",
		"Calico 2 chains (cali-FORWARD...) in nftables table ip filter, and the rules that jump to them",
		"Calico interface vxlan.calico (vxlan, VNI 4096, port 4789)",
		"Calico nftables table ip calico",
		"Calico route 10.98.0.0/24 via 172.18.0.6 proto bird",
		"Calico route blackhole 10.97.0.0/26 proto 80",
		"Calico route blackhole 10.98.1.0/26 proto bird",
		"Calico rule 99: fwmark 0x100000 lookup 1 (WireGuard)",
		"flannel 1 chains (FLANNEL-FWD...) in nftables table ip filter, and the rules that jump to them",
		"flannel file /run/flannel/subnet.env [files are not removed]",
		"flannel interface cni0 (bridge)",
		"flannel interface flannel.1 (vxlan, VNI 1, port 8472)",
		"flannel route 10.244.4.0/24 via 10.244.4.0",
		"flannel route 10.244.5.0/24 via 172.18.0.5",
	}
	if !slices.Equal(texts(before), want) {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(texts(before), "\n"), strings.Join(want, "\n"))
	}
	ns.Do(func() {
		cleaned, err := Clean(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cleaned {
			if c.Err != nil {
				t.Errorf("%s: %v", c.What, c.Err)
			}
		}
	})
	ns.Do(func() {
		after, err := Leftovers(root)
		if err != nil || !slices.Equal(texts(after), []string{want[0], want[9]}) {
			t.Errorf("after: %v, %v", texts(after), err)
		}
	})
	for _, still := range []struct{ command, word string }{
		{"ip route", "10.99.0.0/24 via 172.18.0.5"},
		{"ip route", "172.18.0.0/24 dev eth0"},
		{"ip rule", "98:"},
		{"ip rule", "32766:"},
		{"ip link", "calib1"},
		{"nft list ruleset", "table ip mine"},
		{"nft list ruleset", "ip saddr 10.0.0.0/8 accept"},
	} {
		w := strings.Fields(still.command)
		if out := ns.Command(w[0], w[1:]...); !strings.Contains(out, still.word) {
			t.Errorf("%s is gone:\n%s", still.word, out)
		}
	}
}

// TestWhatIsInUseStays: names that Maneki shares where it has been, a bridge
// with containers, and everything of a network that runs.
func TestWhatIsInUseStays(t *testing.T) {
	ns := nstest.New(t)
	leave(ns)
	ns.Command("ip", "link", "set", "c1", "master", "cni0")
	root := t.TempDir()
	write(t, root, "var/lib/maneki/x", "")
	ns.Do(func() {
		list, err := Leftovers(root)
		if err != nil {
			t.Fatal(err)
		}
		got := texts(list)
		for _, want := range []string{
			"Calico interface vxlan.calico (vxlan, VNI 4096, port 4789) [Maneki uses this name too, and removes it itself when no pool asks for it]",
			"flannel interface cni0 (bridge) [1 containers are plugged in: end them first]",
			"Calico route 10.98.0.0/24 via 172.18.0.6 proto bird",
		} {
			if !slices.Contains(got, want) {
				t.Errorf("%q is missing in\n%s", want, strings.Join(got, "\n"))
			}
		}
		if slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "proto 80") }) {
			t.Errorf("the agent's own routes are listed:\n%s", strings.Join(got, "\n"))
		}
	})
	write(t, root, "proc/41/comm", "bird\n")
	ns.Do(func() {
		cleaned, err := Clean(root)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cleaned {
			if c.Of == calico && c.Keep == "" {
				t.Errorf("%s was removed while BIRD runs", c.What)
			}
		}
	})
	if out := ns.Command("ip", "route"); !strings.Contains(out, "proto bird") {
		t.Errorf("a running network's routes are gone:\n%s", out)
	}
}
