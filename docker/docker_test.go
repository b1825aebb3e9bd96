package docker_test

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/ipam"
)

var update = flag.Bool("update", false, "rewrite testdata")

// generated is the part of an answer that differs from run to run.
var generated = regexp.MustCompile(`fe80::[0-9a-f:]+`)

// The requests in testdata/exchange.txt were recorded from dockerd 20.10.24, except for the bad ones at its head.
func TestExchange(t *testing.T) {
	const path = "testdata/exchange.txt"
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := newRig(t)
	var got, want strings.Builder
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fmt.Fprintln(&want, lines.Text())
		request, ok := strings.CutPrefix(lines.Text(), "> ")
		if !ok {
			continue
		}
		method, body, _ := strings.Cut(request, " ")
		answer := generated.ReplaceAllString(r.post(method, body), "fe80::1")
		fmt.Fprintf(&got, "%s\n< %s\n", lines.Text(), answer)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want.String(), got.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r.wantNothingLeft()
}

const (
	networkID  = "4945f04f433a0de0449dd3d7f06e5f1aac1c6fab4c4d34844a114511f3af1cec"
	endpointID = "1bce5ea65fcd57fd2d4fc5e31e57da996a001a0274d82620ab1430a0f3ae2a18"
	hostEnd    = "cali1bce5ea65fc"
)

var both = fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, networkID, endpointID)

type joined struct {
	InterfaceName        struct{ SrcName, DstPrefix string }
	Gateway, GatewayIPv6 string
}

// create asks for an address of each family and makes the endpoint.
func (r *rig) create() (addrs []string) {
	r.Helper()
	for _, pool := range []string{"CalicoPoolIPv4", "CalicoPoolIPv6"} {
		a := call[struct{ Address string }](r, "IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"","Options":null}`, pool))
		addrs = append(addrs, a.Address)
	}
	call[struct{}](r, "NetworkDriver.CreateEndpoint", fmt.Sprintf(
		`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q,"AddressIPv6":%q,"MacAddress":""},"Options":{}}`, networkID, endpointID, addrs[0], addrs[1]))
	return addrs
}

// join does what dockerd does with the answer to Join.
func (r *rig) join(container *nstest.NS, addrs []string) {
	r.Helper()
	j := call[joined](r, "NetworkDriver.Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":%q}`, networkID, endpointID, container.Path()))
	link, err := r.host.Handle().LinkByName(j.InterfaceName.SrcName)
	if err != nil {
		r.Fatal(err)
	}
	if err := r.host.Handle().LinkSetNsFd(link, container.FD()); err != nil {
		r.Fatal(err)
	}
	name := j.InterfaceName.DstPrefix + "0"
	for _, args := range []string{
		"link set " + j.InterfaceName.SrcName + " name " + name, "link set " + name + " address ee:ee:ee:ee:ee:ee", "link set " + name + " up",
		"addr add " + addrs[0] + " dev " + name, "addr add " + addrs[1] + " dev " + name + " nodad",
		"route add 169.254.1.1/32 dev " + name, "route add default via " + j.Gateway, "-6 route add default via " + j.GatewayIPv6 + " dev " + name,
	} {
		container.Command("ip", strings.Fields(args)...)
	}
}

func bare(cidr string) string { return cidr[:strings.Index(cidr, "/")] }

func (r *rig) remove(addrs []string) {
	r.Helper()
	call[struct{}](r, "NetworkDriver.Leave", both)
	call[struct{}](r, "NetworkDriver.DeleteEndpoint", both)
	for _, a := range addrs {
		call[struct{}](r, "IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"CalicoPoolIPv4","Address":%q}`, bare(a)))
	}
	call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, networkID))
}

// A network that this agent has never seen, as when it was created on another host.
func TestContainerOfAnUnknownNetwork(t *testing.T) {
	r := newRig(t)
	r.engine.set(func(e *engine) { e.networks[networkID] = "calnet1" })
	container := nstest.New(t)
	addrs := r.create()
	r.join(container, addrs)

	// No host here has a default route, so the gateway is known to the container without asking.
	eventually(t, func() string {
		if out := container.Command("ip", "neigh", "show", "169.254.1.1"); !strings.Contains(out, "PERMANENT") {
			return "neighbour: " + out
		}
		return ""
	})
	container.Command("ping", "-c2", "-i0.05", "-W1", "10.0.0.1")
	container.Command("ping", "-c2", "-i0.05", "-W2", "fd00::1")
	r.host.Command("ping", "-c2", "-i0.05", "-W1", bare(addrs[0]))

	w := r.endpoint()
	if w.Spec.InterfaceName != hostEnd || w.Spec.Orchestrator != "libnetwork" || w.Spec.Workload != "libnetwork" || w.Spec.MAC != "ee:ee:ee:ee:ee:ee" ||
		strings.Join(w.Spec.Profiles, " ") != "calnet1" || strings.Join(w.Spec.IPNetworks, " ") != strings.Join(addrs, " ") {
		t.Errorf("spec %+v", w.Spec)
	}
	if _, err := datastore.For[api.Profile](r.store).Get(t.Context(), "", "calnet1"); err != nil {
		t.Error(err)
	}
	r.remove(addrs)
	r.wantNothingLeft()
}

func (r *rig) endpoint() *api.WorkloadEndpoint {
	r.Helper()
	w, err := datastore.For[api.WorkloadEndpoint](r.store).Get(r.Context(), "libnetwork", "etcd1-libnetwork-libnetwork-"+endpointID)
	if err != nil {
		r.Fatal(err)
	}
	return w
}

func TestLabels(t *testing.T) {
	r := newRig(t)
	addrs := r.create()
	call[joined](r, "NetworkDriver.Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/nowhere"}`, networkID, endpointID))
	// Docker does not show the container yet; meanwhile it has the labels of storage only.
	if l := r.endpoint().Labels; len(l) != 2 {
		t.Errorf("labels %v", l)
	}
	r.engine.set(func(e *engine) {
		e.containers = fmt.Sprintf(`[{"Id":"other","Labels":{"app":"other"},"NetworkSettings":{"Networks":{"n":{"EndpointID":"x"}}}},
			{"Id":"c1d2e3f4a5b6c7","Names":["/Web"],"Labels":{"app":"web","role":"loses","org.projectcalico.label.role":"db","a b":"1","a_b":"2","big":%q,"dir":"/srv/x y/","projectcalico.org/namespace":"x"},
			"NetworkSettings":{"Networks":{"n":{"EndpointID":%q,"Aliases":["www","c1d2e3f4a5b6"],"DriverOpts":{"org.projectcalico.label.tier":"front","x":"y"}}}}}]`,
			strings.Repeat("x", 64), endpointID)
	})
	want := map[string]string{
		"app": "web", "role": "db", "a_b": "2", "big": strings.Repeat("x", 63), "dir": "srv_x_y", "tier": "front",
		"projectcalico.org/namespace": "libnetwork", "projectcalico.org/orchestrator": "libnetwork",
	}
	eventually(t, func() string { return cmp.Diff(want, r.endpoint().Labels) })
	if got := r.endpoint().Annotations["maneki.net/docker-names"]; got != "web,www,c1d2e3f4a5b6" {
		t.Errorf("names %q", got)
	}
	r.remove(addrs)
	r.wantNothingLeft()
}

// Labels before the container's first packet: those of the one container that Docker is at work on.
func TestLabelsBeforeTheContainerStarts(t *testing.T) {
	const list = `[
		{"Id":"aaaaaaaaaaaa1","Names":["/old"],"State":"exited","Labels":{"app":"old"},"NetworkSettings":{"Networks":{"calnet1":{"EndpointID":""}}}},
		{"Id":"bbbbbbbbbbbb2","Names":["/new"],"State":"created","Labels":{"app":"new","team":"a"},"NetworkSettings":{"Networks":{"calnet1":{"EndpointID":"","IPAMConfig":{}}}}},
		{"Id":"cccccccccccc3","Names":["/elsewhere"],"State":"created","Labels":{"app":"x"},"NetworkSettings":{"Networks":{"calnet1":{"EndpointID":"","IPAMConfig":{"IPv4Address":"192.168.9.9"}}}}},
		{"Id":"dddddddddddd4","Names":["/up"],"State":"running","Labels":{"app":"up"},"NetworkSettings":{"Networks":{"calnet1":{"EndpointID":"e4"}}}}]`
	for _, tt := range []struct{ locked, app, names string }{
		{"bbbbbbbbbbbb2", "new", "new,bbbbbbbbbbbb"},
		{"aaaaaaaaaaaa1", "old", "old,aaaaaaaaaaaa"},
		{"cccccccccccc3", "", ""},
		{"dddddddddddd4", "", ""},
		{"", "", ""},
	} {
		r := newRig(t)
		r.engine.set(func(e *engine) { e.networks[networkID], e.containers, e.locked = "calnet1", list, tt.locked })
		addrs := r.create()
		w := r.endpoint()
		if w.Labels["app"] != tt.app || w.Annotations["maneki.net/docker-names"] != tt.names || w.Annotations["maneki.net/docker-network-name"] != "calnet1" {
			t.Errorf("%+v: labels %v, annotations %v", tt, w.Labels, w.Annotations)
		}
		r.remove(addrs)
		r.wantNothingLeft()
	}
}

// Where Docker tells of containers that start, it is asked then, and seldom otherwise.
func TestLabelsWhenDockerTells(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.config.LabelTime = time.Minute
	r.engine.set(func(e *engine) { e.starts = make(chan struct{}) })
	r.start()
	r.engine.starts <- struct{}{} // the stream is open
	addrs := r.create()
	call[joined](r, "NetworkDriver.Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/nowhere"}`, networkID, endpointID))
	r.engine.set(func(e *engine) {
		e.containers = fmt.Sprintf(`[{"Id":"c1d2e3f4a5b6c7","Names":["/web"],"Labels":{"app":"web"},"NetworkSettings":{"Networks":{"n":{"EndpointID":%q}}}}]`, endpointID)
		e.lists = 0
	})
	r.engine.starts <- struct{}{}
	eventually(t, func() string { return cmp.Diff("web", r.endpoint().Labels["app"]) })
	r.engine.set(func(e *engine) {
		if e.lists > 2 {
			t.Errorf("asked %d times", e.lists)
		}
	})
	r.remove(addrs)
	r.wantNothingLeft()
}

// What came with the request is there at once.
func TestLabelsOfDriverOptions(t *testing.T) {
	r := newRig(t)
	a := call[struct{ Address string }](r, "IpamDriver.RequestAddress", `{"PoolID":"CalicoPoolIPv4","Address":"","Options":null}`)
	call[struct{}](r, "NetworkDriver.CreateEndpoint", fmt.Sprintf(
		`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q},"Options":{"org.projectcalico.label.role":"db","com.docker.network.portmap":[],"x":"y"}}`,
		networkID, endpointID, a.Address))
	if l := r.endpoint().Labels; l["role"] != "db" || len(l) != 3 {
		t.Errorf("labels %v", l)
	}
	r.remove([]string{a.Address})
}

// Docker answers late, as a dockerd that restarts its containers does: the labels are not given up.
func TestLateLabels(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.config.LabelTime = 50 * time.Millisecond
	r.engine.set(func(e *engine) { e.containers = "not yet" })
	r.start()
	addrs := r.create()
	call[joined](r, "NetworkDriver.Join", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"SandboxKey":"/nowhere"}`, networkID, endpointID))
	time.Sleep(200 * time.Millisecond)
	list := func(name string) {
		r.engine.set(func(e *engine) {
			e.containers = fmt.Sprintf(`[{"Id":"c1d2e3f4a5b6c7","Names":[%q],"Labels":{"app":"web"},"NetworkSettings":{"Networks":{"n":{"EndpointID":%q}}}}]`, name, endpointID)
		})
	}
	list("/first")
	eventually(t, func() string {
		if w := r.endpoint(); w.Labels["app"] != "web" || w.Annotations["maneki.net/docker-names"] != "first,c1d2e3f4a5b6" {
			return fmt.Sprint(w.Labels, w.Annotations)
		}
		return ""
	})
	r.remove(addrs)
}

// An internal network's profile lets nothing out; a network is internal on every host or on none.
func TestInternal(t *testing.T) {
	r := newRig(t)
	const other = "9945f04f433a0de0449dd3d7f06e5f1aac1c6fab4c4d34844a114511f3af1cef"
	r.engine.set(func(e *engine) { e.networks[networkID], e.networks[other] = "shop", "shop" })
	create := func(id string, internal bool) {
		call[struct{}](r, "NetworkDriver.CreateNetwork", fmt.Sprintf(
			`{"NetworkID":%q,"Options":{"com.docker.network.internal":%t},"IPv4Data":[{"Gateway":"0.0.0.0/0","Pool":"0.0.0.0/0"}]}`, id, internal))
	}
	create(networkID, true)
	create(other, false)
	addrs := r.create()
	p, err := datastore.For[api.Profile](r.store).Get(t.Context(), "", "shop")
	if err != nil {
		t.Fatal(err)
	}
	if e := p.Spec.Egress; len(e) != 3 || e[0].Destination.Selector != "has(shop)" || len(p.Spec.Ingress) != 1 || p.Spec.Ingress[0].Source.Selector != "has(shop)" {
		t.Errorf("profile %+v", p.Spec)
	}
	got := r.post("NetworkDriver.CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":"2222222222222222","Interface":{"Address":%q}}`, other, addrs[0]))
	if !strings.Contains(got, "it is internal in this cluster") {
		t.Error(got)
	}
	if got := r.publish(endpointID, `{"Proto":6,"Port":80,"HostPort":60123}`); got != "{}" || len(r.endpoint().Spec.Ports) != 0 {
		t.Errorf("a port of an internal network is published: %s", got)
	}
	r.remove(addrs)
	call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, other))
	r.wantNothingLeft()
}

// Two networks with the same pool are one, under the name of the first, until nobody uses it.
func TestNetworksOfOnePool(t *testing.T) {
	r := newRig(t)
	const other = "9945f04f433a0de0449dd3d7f06e5f1aac1c6fab4c4d34844a114511f3af1cef"
	r.engine.set(func(e *engine) { e.networks[networkID], e.networks[other] = "shop", "something" })
	create := func(id string) {
		call[struct{}](r, "NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{},"IPv4Data":[{"Gateway":"0.0.0.0/0","Pool":"192.168.0.0/16"}]}`, id))
	}
	profile := func(id, endpoint string) string {
		a := call[struct{ Address string }](r, "IpamDriver.RequestAddress", `{"PoolID":"four","Address":""}`)
		call[struct{}](r, "NetworkDriver.CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q}}`, id, endpoint, a.Address))
		w, err := datastore.For[api.WorkloadEndpoint](r.store).Get(t.Context(), "libnetwork", "etcd1-libnetwork-libnetwork-"+endpoint)
		if err != nil {
			t.Fatal(err)
		}
		call[struct{}](r, "NetworkDriver.DeleteEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, id, endpoint))
		return w.Spec.Profiles[0]
	}
	create(networkID)
	create(other)
	if a, b := profile(networkID, endpointID), profile(other, "e2e2e2e2e2e2e2"); a != "shop" || b != "shop" {
		t.Errorf("profiles %s and %s", a, b)
	}
	for _, id := range []string{networkID, other} {
		call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, id))
	}
	create(other)
	if got := profile(other, endpointID); got != "something" {
		t.Errorf("profile %s after the network was deleted everywhere", got)
	}
}

// Docker's API does not answer: the profile is named after the network's ID. The name given by -o needs no API.
func TestProfileNames(t *testing.T) {
	for _, tt := range []struct{ docker, option, want string }{
		{"", "", "docker-4945f04f433a"}, {"My_Net", "", "my-net-52a0ad"}, {"calnet1", "shop", "shop"}, {strings.Repeat("n", 80), "", strings.Repeat("n", 49) + "-5b6928"},
	} {
		r := newRig(t)
		if tt.docker != "" {
			r.engine.set(func(e *engine) { e.networks[networkID] = tt.docker })
		}
		if tt.option != "" {
			call[struct{}](r, "NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{"com.docker.network.generic":{"maneki.network":%q}},
				"IPv4Data":[{"Gateway":"0.0.0.0/0","Pool":"0.0.0.0/0"}]}`, networkID, tt.option))
		}
		addrs := r.create()
		if got := r.endpoint().Spec.Profiles[0]; got != tt.want {
			t.Errorf("%+v: profile %s", tt, got)
		}
		r.stop() // what was known before a restart is known after it
		r.engine.set(func(e *engine) { clear(e.networks) })
		r.start()
		r.remove(addrs)
		r.wantNothingLeft()
	}
}

// The pool of --subnet is marked with the network as in Calico.
func TestPoolIsAnnotated(t *testing.T) {
	r := newRig(t)
	note := func() string {
		p, err := datastore.For[api.IPPool](r.store).Get(t.Context(), "", "four")
		if err != nil {
			t.Fatal(err)
		}
		return p.Annotations["org.projectcalico.label.network.ID"]
	}
	call[struct{}](r, "NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{},"IPv4Data":[{"Gateway":"0.0.0.0/0","Pool":"192.168.0.0/16"}]}`, networkID))
	if got := note(); got != networkID {
		t.Errorf("annotation %q", got)
	}
	call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, networkID))
	if got := note(); got != "" {
		t.Errorf("annotation %q after the network was deleted", got)
	}
}

// Each step of a container's removal may be missed when the agent is not there: what is left is found.
func TestForgotten(t *testing.T) {
	r := newRig(t)
	r.engine.set(func(e *engine) {
		e.containers = fmt.Sprintf(`[{"NetworkSettings":{"Networks":{"n":{"EndpointID":%q}}}}]`, endpointID)
	})
	addrs := r.create()
	s, err := docker.Listen(docker.Config{StateDir: r.dir, Log: r.config.Log, PluginDir: t.TempDir(), Engine: r.engine.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Open(r.backend)
	collect := func(before time.Time) {
		if err := s.CollectBefore(t.Context(), before); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Minute)
	all := r.left()
	collect(time.Now().Add(-time.Minute)) // too young
	collect(later)                        // Docker knows it
	if got := r.left(); got != all {
		t.Errorf("%s was %s", got, all)
	}
	r.engine.set(func(e *engine) { e.containers = "not JSON" })
	if err := s.CollectBefore(t.Context(), later); err == nil || r.left() != all {
		t.Errorf("Docker does not answer: %v, left %s", err, r.left())
	}
	r.engine.set(func(e *engine) { e.containers = "[]" })
	container := nstest.New(t)
	r.join(container, addrs)
	collect(later) // in a container: alive whatever Docker says
	if got := r.left(); !strings.Contains(got, endpointID) {
		t.Error("an endpoint in use was removed")
	}
	if err := container.Handle().LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "cali0"}}); err != nil {
		t.Fatal(err)
	}
	collect(later)
	call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, networkID))
	r.wantNothingLeft()
	// dockerd, back again, releases what it remembers.
	r.remove(addrs)
}

// An address of --aux-address has no endpoint and stays.
func TestReservedAddressStays(t *testing.T) {
	r := newRig(t)
	call[struct{ Address string }](r, "IpamDriver.RequestAddress", `{"PoolID":"four","Address":"192.168.7.7"}`)
	call[struct{}](r, "NetworkDriver.CreateNetwork", fmt.Sprintf(
		`{"NetworkID":%q,"Options":{},"IPv4Data":[{"Gateway":"0.0.0.0/0","Pool":"192.168.0.0/16","AuxAddresses":{"r":"192.168.7.7/32"}}]}`, networkID))
	r.config.Collect = time.Hour
	r.stop()
	s := r.listen()
	defer s.Close()
	s.Open(r.backend)
	if err := s.CollectBefore(t.Context(), time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got := r.left(); strings.Count(got, "libnetwork-") != 1 {
		t.Errorf("left:\n%s", got)
	}
}

// Somebody else's address is not released, whatever dockerd remembers, and not used.
func TestAddressOfAnother(t *testing.T) {
	r := newRig(t)
	got, err := r.ipam.AutoAssign(t.Context(), ipam.Request{Host: node, Handle: "net1.pod1", Num4: 1})
	if err != nil {
		t.Fatal(err)
	}
	addr := got[0].Addr.String()
	call[struct{}](r, "IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"CalicoPoolIPv4","Address":%q}`, addr))
	if held, err := r.ipam.ByHandle(t.Context(), "net1.pod1"); err != nil || len(held) != 1 {
		t.Errorf("handle holds %v, %v", held, err)
	}
	answer := r.post("NetworkDriver.CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":"%s/32"}}`, networkID, endpointID, addr))
	if !strings.Contains(answer, "is not assigned to Docker on this host") {
		t.Error(answer)
	}
}

// dockerd that starts while the agent does is answered what it asks for the drivers' sake; the rest waits.
func TestCallsBeforeOpen(t *testing.T) {
	r := newRig(t)
	r.stop()
	s := r.listen()
	r.serve(s)
	if got := r.post("Plugin.Activate", ""); got != `{"Implements":["NetworkDriver"]}` {
		t.Error(got)
	}
	if got := r.post("NetworkDriver.GetCapabilities", ""); !strings.Contains(got, `"Scope":"local"`) {
		t.Error(got)
	}
	answered := make(chan string, 1)
	socket := filepath.Join(r.config.PluginDir, "maneki-ipam.sock")
	go func() {
		got, err := post(socket, "IpamDriver.RequestPool", `{"Pool":""}`)
		answered <- fmt.Sprint(got, err)
	}()
	select {
	case got := <-answered:
		t.Error("answered before Open:", got)
	case <-time.After(100 * time.Millisecond):
	}
	s.Open(r.backend)
	if got := <-answered; !strings.Contains(got, `"PoolID":"CalicoPoolIPv4"`) {
		t.Error(got)
	}
	// A call that dockerd repeats has lost its content; it must not be taken for one that asks for the default.
	if got := r.post("IpamDriver.RequestPool", ""); !strings.Contains(got, "try again") {
		t.Error(got)
	}
}

// An agent that is stopped before it was ready lets nobody wait.
func TestStopBeforeOpen(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.serve(r.listen())
	answered := make(chan string, 1)
	socket := filepath.Join(r.config.PluginDir, "maneki.sock")
	go func() {
		got, err := post(socket, "NetworkDriver.Leave", both)
		answered <- fmt.Sprint(got, err)
	}()
	time.Sleep(300 * time.Millisecond) // for the call to arrive
	start := time.Now()
	r.stop()
	if got := <-answered; !strings.Contains(got, "is being stopped") || time.Since(start) > 10*time.Second {
		t.Error(got, time.Since(start))
	}
}

func TestSockets(t *testing.T) {
	r := newRig(t)
	var names []string
	entries, err := os.ReadDir(r.config.PluginDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: mode %s, %v", e.Name(), info.Mode(), err)
		}
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "calico-ipam.sock calico.sock maneki-ipam.sock maneki.sock" {
		t.Error(got)
	}
	if _, err := docker.Listen(r.config); err == nil || !strings.Contains(err.Error(), "another program answers there") {
		t.Errorf("second listener: %v", err)
	}
	for name, kind := range map[string]string{"calico": "NetworkDriver", "calico-ipam": "IpamDriver"} {
		answer, err := post(filepath.Join(r.config.PluginDir, name+".sock"), "Plugin.Activate", "")
		if err != nil || answer != `{"Implements":["`+kind+`"]}` {
			t.Error(name, answer, err)
		}
	}
	r.stop()
	if entries, err := os.ReadDir(r.config.PluginDir); err != nil || len(entries) != 0 {
		t.Errorf("left after the stop: %v, %v", entries, err)
	}
	// What a killed agent leaves is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(r.config.PluginDir, "maneki.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	r.start()
	call[struct{ Scope string }](r, "NetworkDriver.GetCapabilities", "")
}

// More connections than are served at once wait, idle ones do not hold a place for ever.
func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t)
	r.stop()
	r.config.Connections = 2
	r.start()
	socket := filepath.Join(r.config.PluginDir, "maneki.sock")
	var idle []net.Conn
	for range 2 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	answered := make(chan error, 1)
	go func() { _, err := post(socket, "Plugin.Activate", ""); answered <- err }()
	select {
	case err := <-answered:
		t.Errorf("a third connection was served: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	for _, c := range idle {
		_ = c.Close()
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// dockerd that was killed gives back the addresses of the containers it had, and says nothing of their endpoints.
func TestReleaseDetachesTheEndpoint(t *testing.T) {
	for _, restart := range []bool{false, true} {
		r := newRig(t)
		addrs := r.create()
		if restart {
			r.stop()
			r.start()
		}
		for _, a := range addrs {
			call[struct{}](r, "IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"CalicoPoolIPv4","Address":%q}`, bare(a)))
		}
		call[struct{}](r, "NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, networkID))
		r.wantNothingLeft()
	}
}

// Only a file that is a namespace is entered.
func TestSandboxThatIsNone(t *testing.T) {
	r := newRig(t)
	r.create()
	f := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := r.manager.SettlePort(t.Context(), endpointID, file); err == nil {
		t.Error("a file was entered")
	}
	if err := r.manager.SettlePort(t.Context(), endpointID, nsFile(t, r.host)); err == nil {
		t.Error("the host was taken for a container")
	}
	other := nstest.New(t)
	if err := r.manager.SettlePort(t.Context(), endpointID, nsFile(t, other)); err == nil {
		t.Error("another container was taken for this one")
	}
}

// The pair is made again when it is gone, as after a reboot.
func TestJoinAfterThePairIsGone(t *testing.T) {
	r := newRig(t)
	addrs := r.create()
	link, err := r.host.Handle().LinkByName(hostEnd)
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		t.Error("the host's end is down")
	}
	if err := r.host.Handle().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	container := nstest.New(t)
	r.join(container, addrs)
	r.host.Command("ping", "-c1", "-W1", bare(addrs[0]))
	r.remove(addrs)
	r.wantNothingLeft()
}

func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	var text string
	for range 4000 {
		if text = wrong(); text == "" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error(text)
}
