package endpoint_test

import (
	"errors"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

// volatile matches what differs from run to run in the output of ip.
var volatile = regexp.MustCompile(`@if\d+|link-netnsid \d+|\bqlen \d+`)

func ip(ns *nstest.NS, args ...string) string {
	lines := strings.Split(strings.TrimSpace(volatile.ReplaceAllString(ns.Command("ip", args...), "")), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.Join(lines, "\n")
}

func TestAttachedContainerLooksLikeCalicos(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	res := r.attach(spec(t, container, "0123456789abcdef"))

	four, six := res.Addresses[0].Addr(), res.Addresses[1].Addr()
	named := strings.NewReplacer(four.String(), "FOUR", six.String(), "SIX")
	wantText(t, named.Replace(strings.Join(strings.Fields(ip(container, "-br", "addr", "show", "dev", "eth0")), " ")), "eth0 UP FOUR/32 SIX/128")
	wantText(t, named.Replace(ip(container, "route")), `
default via 169.254.1.1 dev eth0
169.254.1.1 dev eth0 scope link`)
	wantText(t, named.Replace(ip(container, "-6", "route")), `
SIX dev eth0 proto kernel metric 256 pref medium
default via fe80::ecee:eeff:feee:eeee dev eth0 metric 1024 pref medium`)
	wantText(t, ip(container, "neigh"), `
169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT
fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT`)
	link := ip(container, "link", "show", "dev", "eth0")
	if !strings.Contains(link, "mtu 1450") || !strings.Contains(link, "link/ether ee:ee:ee:ee:ee:ee") {
		t.Errorf("container's link:\n%s", link)
	}
	link = ip(r.host, "link", "show", "dev", "cali0123456789a")
	for _, want := range []string{"UP", "mtu 1450", "link/ether ee:ee:ee:ee:ee:ee", "alias maneki:net1/0123456789abcdef/eth0"} {
		if !strings.Contains(link, want) {
			t.Errorf("host's link lacks %q:\n%s", want, link)
		}
	}
	wantText(t, ip(r.host, "-6", "addr", "show", "dev", "cali0123456789a", "scope", "link"), link6(ip(r.host, "-6", "addr", "show", "dev", "cali0123456789a")))
	for name, want := range map[string]string{
		"ipv4/conf/cali0123456789a/proxy_arp": "1", "ipv4/conf/cali0123456789a/forwarding": "1",
		"ipv4/conf/cali0123456789a/route_localnet": "1", "ipv4/neigh/cali0123456789a/proxy_delay": "0",
		"ipv6/conf/cali0123456789a/accept_ra": "0", "ipv6/conf/cali0123456789a/proxy_ndp": "1",
	} {
		if got := strings.TrimSpace(r.host.Command("cat", "/proc/sys/net/"+name)); got != want {
			t.Errorf("host: %s is %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]string{"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0"} {
		if got := strings.TrimSpace(container.Command("cat", "/proc/sys/net/"+name)); got != want {
			t.Errorf("container: %s is %s, want %s", name, got, want)
		}
	}
	if err := r.Check(t.Context(), endpoint.ID{Network: "net1", ContainerID: "0123456789abcdef", IfName: "eth0"}, nsFile(t, container), res.Addresses); err != nil {
		t.Error(err)
	}
}

// link6 is the one link-local address that the host's end must have.
func link6(out string) string {
	head, _, _ := strings.Cut(out, "\n")
	return head + "\ninet6 fe80::ecee:eeff:feee:eeee/64 scope link nodad\nvalid_lft forever preferred_lft forever"
}

func TestContainersReachEachOtherAndTheHost(t *testing.T) {
	r := newRig(t)
	a, b := nstest.New(t), nstest.New(t)
	ra, rb := r.attach(spec(t, a, "aaaa")), r.attach(spec(t, b, "bbbb"))
	for i := range ra.Addresses {
		pa, pb := ra.Addresses[i].Addr(), rb.Addresses[i].Addr()
		ping(t, a, pb)
		ping(t, b, pa)
		ping(t, r.host, pa)
		if out := a.Command("ping", "-c1", "-W1", pb.String()); !strings.Contains(out, "ttl=63") {
			t.Errorf("one router is between two containers of a host:\n%s", out)
		}
	}
	ping(t, a, netip.MustParseAddr("10.0.0.1"))
	ping(t, a, netip.MustParseAddr("fd00::1"))
	a.Command("ping", "-c1", "-W1", "127.0.0.1")
	// Big packets in both directions: the MTU is the same at both ends.
	ping(t, a, rb.Addresses[0].Addr(), "-s", "1422", "-M", "do")
	// The host learns of the container by asking it, not from a table that was filled for it.
	wantText(t, ip(r.host, "-6", "neigh", "show", "dev", "caliaaaa", "to", ra.Addresses[1].Addr().String(), "nud", "permanent"), "")
}

func TestStoredObjects(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "c1")
	s.Labels, s.Workload, s.Namespace = map[string]string{"app": "web"}, "web-1", "shop"
	res := r.attach(s)

	w, err := datastore.For[api.WorkloadEndpoint](r.store).Get(t.Context(), "shop", "node1-cni-c1-eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Validate(); err != nil {
		t.Error(err)
	}
	if w.Spec.MAC != "ee:ee:ee:ee:ee:ee" || w.Spec.InterfaceName != "calic1" || w.Spec.Workload != "web-1" || w.Spec.Node != node ||
		w.Spec.ContainerID != "c1" || strings.Join(w.Spec.IPNetworks, " ") != res.Addresses[0].String()+" "+res.Addresses[1].String() ||
		strings.Join(w.Spec.Profiles, " ") != "net1" {
		t.Errorf("spec %+v", w.Spec)
	}
	if w.Labels["app"] != "web" || w.Labels[api.LabelNamespace] != "shop" || w.Labels[api.LabelOrchestrator] != "cni" ||
		w.Annotations[endpoint.AnnotationNetwork] != "net1" {
		t.Errorf("labels %v, annotations %v", w.Labels, w.Annotations)
	}
	p, err := datastore.For[api.Profile](r.store).Get(t.Context(), "", "net1")
	if err != nil {
		t.Fatal(err)
	}
	if p.Spec.Ingress[0].Source.Selector != "has(net1)" || p.Spec.Egress[0].Action != api.ActionAllow || len(p.Spec.LabelsToApply) != 1 {
		t.Errorf("profile %+v", p.Spec)
	}
	addrs, err := r.ipam.ByHandle(t.Context(), "net1.c1")
	if err != nil || len(addrs) != 2 {
		t.Errorf("handle holds %v, %v", addrs, err)
	}
}

func TestPodIsNamedAsInCalico(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "sandbox1")
	s.Namespace, s.Pod = "default", "nginx"
	if got := r.attach(s).HostInterface; got != "calic440f455693" { // measured, spec/calico.md §4
		t.Errorf("interface %s", got)
	}
	second := s
	second.IfName = "net1"
	if got := r.attach(second).HostInterface; got == "calic440f455693" || !strings.HasPrefix(got, "cali") || len(got) != 15 {
		t.Errorf("second interface %s", got)
	}
	if _, err := datastore.For[api.WorkloadEndpoint](r.store).Get(t.Context(), "default", "node1-k8s-nginx-eth0"); err != nil {
		t.Error(err)
	}
	if err := r.Detach(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if addrs, _ := r.ipam.ByHandle(t.Context(), "net1.sandbox1"); len(addrs) != 2 {
		t.Errorf("deleting the second interface took the first one's addresses: %v left", addrs)
	}
	if err := r.Detach(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

func TestRepeatedAttachGivesTheSame(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	s := spec(t, container, "c1")
	first := r.attach(s)
	before := r.left()
	second := r.attach(s)
	if !first.Created || second.Created {
		t.Errorf("created: %v then %v", first.Created, second.Created)
	}
	second.Created = true
	if diff := diffResult(first, second); diff != "" {
		t.Error(diff)
	}
	// A damaged container's side is repaired with the same addresses.
	container.Command("ip", "route", "flush", "dev", "eth0")
	third := r.attach(s)
	third.Created = true
	if diff := diffResult(first, third); diff != "" {
		t.Error(diff)
	}
	wantText(t, r.left(), before)
	ping(t, r.host, first.Addresses[0].Addr())
	container.Command("ip", "link", "del", "eth0")
	r.attach(s)
	ping(t, r.host, first.Addresses[1].Addr())
	wantText(t, r.left(), before)
}

func diffResult(a, b endpoint.Result) string {
	same := a.HostInterface == b.HostInterface && a.IfName == b.IfName && a.MAC.String() == b.MAC.String() && a.MTU == b.MTU &&
		len(a.Addresses) == len(b.Addresses) && len(a.Routes) == len(b.Routes)
	for i := range a.Addresses {
		same = same && a.Addresses[i] == b.Addresses[i]
	}
	if same {
		return ""
	}
	return "results differ"
}

func TestDetachLeavesNothing(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "c1")
	r.attach(s)
	for range 3 {
		if err := r.Detach(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		r.wantNothingLeft()
	}
	if len(r.sink.local) != 0 {
		t.Errorf("the sink still has %v", r.sink.local)
	}
	r.attach(s) // again under the same ID
}

func TestDetachAfterTheNamespaceWent(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "c1")
	r.attach(s)
	// What the death of the namespace does to the pair.
	r.host.Command("ip", "link", "del", "calic1")
	if err := r.Detach(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

func TestEqualHeadOfIDsIsRefused(t *testing.T) {
	r := newRig(t)
	s := spec(t, nstest.New(t), "0123456789a-one")
	res := r.attach(s)
	before := r.left()
	other := nstest.New(t)
	_, err := r.Attach(t.Context(), spec(t, other, "0123456789a-two"))
	if !errors.Is(err, endpoint.ErrNameTaken) || !strings.Contains(err.Error(), "node1-cni-0123456789a--one-eth0") {
		t.Errorf("error %v", err)
	}
	if err := r.Detach(t.Context(), endpoint.ID{Network: "net1", ContainerID: "0123456789a-two", IfName: "eth0"}); err != nil {
		t.Error(err)
	}
	wantText(t, r.left(), before)
	ping(t, r.host, res.Addresses[0].Addr())
	if got := ip(other, "-br", "link"); strings.Contains(got, "eth0") {
		t.Errorf("the refused container has an interface:\n%s", got)
	}
}

func TestStaleInterfaceIsReplaced(t *testing.T) {
	r := newRig(t)
	nstest.Veth(r.host, "calic1", nstest.New(t), "eth0")
	res := r.attach(spec(t, nstest.New(t), "c1"))
	ping(t, r.host, res.Addresses[0].Addr())
}

func TestInterfaceInContainerIsNotReplaced(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	nstest.Veth(container, "eth0", nstest.New(t), "x")
	_, err := r.Attach(t.Context(), spec(t, container, "c1"))
	if err == nil || !strings.Contains(err.Error(), "eth0 exists in the container already") {
		t.Errorf("error %v", err)
	}
	r.wantNothingLeft()
	container.Command("ip", "link", "show", "dev", "eth0")
}

func TestNewSandboxOfAPodTakesOver(t *testing.T) {
	r := newRig(t)
	old := spec(t, nstest.New(t), "sandbox1")
	old.Namespace, old.Pod = "default", "nginx"
	first := r.attach(old)
	fresh := spec(t, nstest.New(t), "sandbox2")
	fresh.Namespace, fresh.Pod = "default", "nginx"
	second := r.attach(fresh)
	if first.HostInterface != second.HostInterface || first.Addresses[0] == second.Addresses[0] {
		t.Errorf("first %+v, second %+v", first, second)
	}
	if err := r.Detach(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	ping(t, r.host, second.Addresses[0].Addr())
	if addrs, _ := r.ipam.ByHandle(t.Context(), "net1.sandbox1"); len(addrs) != 0 {
		t.Errorf("the old sandbox's addresses are still assigned: %v", addrs)
	}
	if err := r.Detach(t.Context(), fresh.ID); err != nil {
		t.Fatal(err)
	}
	r.wantNothingLeft()
}

func TestFailureUndoesEverything(t *testing.T) {
	r := newRig(t)
	r.sink.err = errors.New("no routes today")
	_, err := r.Attach(t.Context(), spec(t, nstest.New(t), "c1"))
	if err == nil || !strings.Contains(err.Error(), "no routes today") {
		t.Errorf("error %v", err)
	}
	r.wantNothingLeft()

	s := spec(t, nstest.New(t), "c2")
	s.Pools4 = []string{"nosuch"}
	if _, err := r.Attach(t.Context(), s); err == nil {
		t.Error("a pool that is not there gave an address")
	}
	r.wantNothingLeft()
}

func TestFixedAddressAndMAC(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	s := spec(t, container, "c1")
	s.Addrs = []netip.Addr{netip.MustParseAddr("fd65::77"), netip.MustParseAddr("10.65.3.9")}
	s.MAC, _ = net.ParseMAC("02:00:00:00:00:07")
	s.AllowForwarding, s.MTU = true, 1300
	res := r.attach(s)
	if res.Addresses[0].String() != "10.65.3.9/32" || res.Addresses[1].String() != "fd65::77/128" {
		t.Errorf("addresses %v", res.Addresses)
	}
	if got := ip(container, "link", "show", "dev", "eth0"); !strings.Contains(got, "02:00:00:00:00:07") || !strings.Contains(got, "mtu 1300") {
		t.Errorf("link:\n%s", got)
	}
	ping(t, r.host, res.Addresses[0].Addr())
	ping(t, r.host, res.Addresses[1].Addr())
	if _, err := r.Attach(t.Context(), func() endpoint.Spec {
		s2 := spec(t, nstest.New(t), "c2")
		s2.Addrs = []netip.Addr{netip.MustParseAddr("10.65.3.9")}
		return s2
	}()); err == nil {
		t.Error("one address was given twice")
	}
	ping(t, r.host, res.Addresses[0].Addr())
}

func TestBadSpecsAreRefused(t *testing.T) {
	r := newRig(t)
	container := nstest.New(t)
	tests := []struct {
		name   string
		change func(*endpoint.Spec)
		want   string
	}{
		{"no network", func(s *endpoint.Spec) { s.Network = "" }, "network"},
		{"ID with a command", func(s *endpoint.Spec) { s.ContainerID = ";touch x" }, "name"},
		{"long interface", func(s *endpoint.Spec) { s.IfName = "eth0123456789012" }, "ifName"},
		{"interface with slash", func(s *endpoint.Spec) { s.IfName = "../eth0" }, "ifName"},
		{"no family", func(s *endpoint.Spec) { s.IPv4, s.IPv6 = false, false }, "family"},
		{"mtu", func(s *endpoint.Spec) { s.MTU = 100 }, "mtu \"100\": 0 for the host's, or 1280 to 65535"},
		{"multicast mac", func(s *endpoint.Spec) { s.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 0} }, "mac"},
		{"address twice", func(s *endpoint.Spec) {
			s.Addrs = []netip.Addr{netip.MustParseAddr("10.65.0.1"), netip.MustParseAddr("10.65.0.1")}
		}, "address"},
		{"label", func(s *endpoint.Spec) { s.Labels = map[string]string{"a b": ""} }, "label"},
		{"no namespace file", func(s *endpoint.Spec) { s.Netns = nil }, "not a network namespace"},
		{"host's namespace", func(s *endpoint.Spec) { s.Netns = nsFile(t, r.host) }, "host's own"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := spec(t, container, "c1")
			tt.change(&s)
			_, err := r.Attach(t.Context(), s)
			if !errors.Is(err, endpoint.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	r.wantNothingLeft()
}

func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	const n = 20
	specs := make([]endpoint.Spec, n)
	for i := range specs {
		specs[i] = spec(t, nstest.New(t), strings.Repeat(string(rune('a'+i)), 12))
	}
	results := make([]endpoint.Result, n)
	var wg sync.WaitGroup
	for i := range specs {
		wg.Go(func() {
			var err error
			if results[i], err = r.Attach(t.Context(), specs[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[netip.Prefix]bool{}
	for _, res := range results {
		for _, a := range res.Addresses {
			if seen[a] {
				t.Errorf("%s was given twice", a)
			}
			seen[a] = true
		}
	}
	if len(seen) != 2*n {
		t.Errorf("%d addresses, want %d", len(seen), 2*n)
	}
	for i := range specs {
		wg.Go(func() {
			if err := r.Detach(t.Context(), specs[i].ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.wantNothingLeft()
}
