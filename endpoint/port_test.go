package endpoint_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/dataplane/nstest"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
)

const portID = "1bce5ea65fcd57fd2d4fc5e31e57da996a001a0274d82620ab1430a0f3ae2a18"

// port is an attachment with one address of each family, which IPAM has assigned.
func (r *rig) port() endpoint.Port {
	r.Helper()
	p := endpoint.Port{ID: portID, Network: "calnet1"}
	got, err := r.ipam.AutoAssign(r.Context(), ipam.Request{Host: node, Handle: "libnetwork-1", Num4: 1, Num6: 1})
	if err != nil {
		r.Fatal(err)
	}
	for _, a := range got {
		p.Addrs = append(p.Addrs, a.Addr)
	}
	return p
}

func (r *rig) giveBack() {
	r.Helper()
	if _, err := r.ipam.ReleaseByHandle(context.Background(), "libnetwork-1"); err != nil {
		r.Fatal(err)
	}
}

func TestPortIsReadyOnTheHost(t *testing.T) {
	r := newRig(t)
	p := r.port()
	if err := r.AttachPort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	info, err := r.OpenPort(t.Context(), portID)
	if err != nil {
		t.Fatal(err)
	}
	if info.Interface != "temp1bce5ea65fc" || info.MAC.String() != "ee:ee:ee:ee:ee:ee" || info.Gateway4 != netip.MustParseAddr("169.254.1.1") || len(info.Addresses) != 2 {
		t.Errorf("%+v", info)
	}
	hostEnd := ip(r.host, "link", "show", "dev", "cali1bce5ea65fc")
	for _, want := range []string{"mtu 1450", "alias maneki:libnetwork/" + portID} {
		if !strings.Contains(hostEnd, want) {
			t.Errorf("host's end lacks %q:\n%s", want, hostEnd)
		}
	}
	if strings.Contains(hostEnd, "ee:ee:ee:ee:ee:ee ") {
		t.Errorf("the host's end has the container's hardware address:\n%s", hostEnd)
	}
	// The gateway that the container is told is the address that the host's end has.
	if six := ip(r.host, "-6", "addr", "show", "dev", "cali1bce5ea65fc"); !strings.Contains(six, info.Gateway6.String()+"/64") {
		t.Errorf("gateway %s:\n%s", info.Gateway6, six)
	}
	if routes := ip(r.host, "route"); !strings.Contains(routes, p.Addrs[0].String()+" dev cali1bce5ea65fc") {
		t.Error(routes)
	}
	// Again, as when dockerd repeats itself: made anew, once.
	if err := r.AttachPort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(r.left(), "link"); n != 2 {
		t.Errorf("%d links:\n%s", n, r.left())
	}
	if err := r.ClosePort(t.Context(), portID); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := r.DetachPort(t.Context(), portID); err != nil {
			t.Error(err)
		}
	}
	if held, err := r.ipam.ByHandle(t.Context(), "libnetwork-1"); err != nil || len(held) != 2 {
		t.Errorf("addresses are the caller's: %v, %v", held, err)
	}
	r.giveBack()
	r.wantNothingLeft()
}

func TestPortThatFailsIsUndone(t *testing.T) {
	r := newRig(t)
	p := r.port()
	r.sink.err = errors.New("no route for you")
	if err := r.AttachPort(t.Context(), p); err == nil {
		t.Error("attached")
	}
	r.giveBack()
	r.wantNothingLeft()
}

// The agent is killed in the middle: the next one undoes what the journal has.
func TestPortHalfMadeIsUndoneAtTheNextStart(t *testing.T) {
	for _, step := range []string{endpoint.StepJournal, endpoint.StepPair, endpoint.StepEndpoint, endpoint.StepRoutes} {
		r := newRig(t)
		p := r.port()
		dying := r.manager(func(c *endpoint.Config) {
			c.Step = func(name string) {
				if name == step {
					panic("killed")
				}
			}
		})
		func() {
			defer func() { _ = recover() }()
			// The undoing of a failure sees no error, so that it does as little as in a process that is killed.
			_ = dying.AttachPort(t.Context(), p)
			t.Errorf("step %s was not reached", step)
		}()
		if !strings.Contains(r.left(), "journal cali1bce5ea65fc.json") {
			t.Errorf("step %s: no record in the journal:\n%s", step, r.left())
		}
		next := r.manager()
		if err := next.Recover(t.Context()); err != nil {
			t.Error(step, err)
		}
		r.giveBack()
		r.wantNothingLeft()
	}
}

// Without the datastore the host's side is removed now and the endpoint later.
func TestPortIsDetachedWithoutTheDatastore(t *testing.T) {
	r := newRig(t)
	p := r.port()
	if err := r.AttachPort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	away := r.manager(func(c *endpoint.Config) { c.Store = gone{c.Store} })
	if err := away.DetachPort(t.Context(), portID); err != nil {
		t.Fatal(err)
	}
	if left := r.left(); strings.Contains(left, "link") || !strings.Contains(left, "pending") {
		t.Error(left)
	}
	if err := r.manager().Recover(t.Context()); err != nil {
		t.Error(err)
	}
	r.giveBack()
	r.wantNothingLeft()
}

// gone is a datastore that does not answer.
type gone struct{ datastore.Store }

func (gone) Get(context.Context, datastore.Key) (datastore.Entry, error) {
	return datastore.Entry{}, datastore.ErrUnavailable
}

// A CNI network's GC leaves Docker's endpoints alone, whatever the network is called.
func TestGCSparesPorts(t *testing.T) {
	r := newRig(t)
	if err := r.AttachPort(t.Context(), r.port()); err != nil {
		t.Fatal(err)
	}
	all := r.left()
	for _, network := range []string{"calnet1", "libnetwork"} {
		if err := r.GC(t.Context(), network, nil); err != nil {
			t.Error(err)
		}
	}
	if got := r.left(); got != all {
		t.Errorf("%s\nwas\n%s", got, all)
	}
}

func TestIdlePorts(t *testing.T) {
	r := newRig(t)
	p := r.port()
	if err := r.AttachPort(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	idle := func(before time.Time) string {
		ports, err := r.IdlePorts(t.Context(), before)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(ports, " ")
	}
	later := time.Now().Add(time.Minute)
	wantText(t, idle(time.Now().Add(-time.Minute)), "")
	wantText(t, idle(later), portID)
	link, err := r.host.Handle().LinkByName("temp1bce5ea65fc")
	if err != nil {
		t.Fatal(err)
	}
	container := nstest.New(t)
	if err := r.host.Handle().LinkSetNsFd(link, container.FD()); err != nil {
		t.Fatal(err)
	}
	wantText(t, idle(later), "")
	if err := r.ClosePort(t.Context(), portID); err != nil {
		t.Fatal(err)
	}
	wantText(t, idle(later), portID)
}

func TestBadPorts(t *testing.T) {
	r := newRig(t)
	good := r.port()
	for name, spoil := range map[string]func(p *endpoint.Port){
		"endpoint ID":    func(p *endpoint.Port) { p.ID = "../../etc/passwd" },
		"short ID":       func(p *endpoint.Port) { p.ID = "abc" },
		"no address":     func(p *endpoint.Port) { p.Addrs = nil },
		"multicast MAC":  func(p *endpoint.Port) { p.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"small MTU":      func(p *endpoint.Port) { p.MTU = 100 },
		"address twice":  func(p *endpoint.Port) { p.Addrs = append(p.Addrs, p.Addrs[0]) },
		"bad profile":    func(p *endpoint.Port) { p.Network = "Not A Name" },
		"label's syntax": func(p *endpoint.Port) { p.Labels = map[string]string{"a b": "c"} },
	} {
		p := good
		p.Addrs = append([]netip.Addr(nil), good.Addrs...)
		spoil(&p)
		if err := r.AttachPort(t.Context(), p); !errors.Is(err, endpoint.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.giveBack()
	r.wantNothingLeft()
}
