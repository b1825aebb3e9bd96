package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
)

// hosts adds simulated hosts to the datastore of a lab host, each with one
// block, switches the pool between encapsulations, and times what this host's
// agent makes of it: from the datastore's acknowledgement until the last route
// is in the kernel. Then single hosts change their address.
func hosts(args []string) error {
	f := flag.NewFlagSet("hosts", flag.ContinueOnError)
	n := f.Int("n", 1000, "hosts")
	changes := f.Int("changes", 50, "changes of one host's address")
	pid := f.Int("pid", 0, "process of this host's agent")
	endpoint := f.String("etcd", "http://127.0.0.1:2379", "datastore")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	store, err := config.Open(ctx, config.Config{Type: "etcdv3", EtcdEndpoints: []string{*endpoint}}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer store.Close()
	s := simulation{ctx: ctx, store: store, n: *n, pid: *pid}
	before := s.rss()
	if err := s.populate(); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // the agent has read them all
	known := s.rss()
	fmt.Println("| encapsulation | to switch the pool over, ms | agent RSS MiB | one host's new address: p50 ms | p99 ms |")
	fmt.Println("|---|---|---|---|---|")
	fmt.Printf("| none, no hosts | | %.1f | | |\n", before)
	fmt.Printf("| none, %d hosts known, nobody routes there | | %.1f | | |\n", s.n, known)
	for _, mode := range []string{"IPIP", "VXLAN"} {
		if err := s.one(mode, *changes); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	return nil
}

type simulation struct {
	ctx    context.Context
	store  datastore.Store
	n, pid int
}

// Where the simulated hosts and their blocks are: behind a router, in a pool of their own.
const pool = "10.64.0.0/12"

func host(i int) string { return fmt.Sprintf("10.200.%d.%d", i/250, 1+i%250) }

func block(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + i/1000), byte(i % 1000 / 4), byte(i % 4 * 64)}), 26)
}

func (s *simulation) populate() error {
	off := false
	mesh := &api.BGPConfiguration{Spec: api.BGPConfigurationSpec{NodeToNodeMeshEnabled: &off}}
	mesh.Name = "default"
	if err := datastore.For[api.BGPConfiguration](s.store).Apply(s.ctx, mesh); err != nil {
		return err
	}
	if err := s.mode("none"); err != nil {
		return err
	}
	for i := range s.n {
		if err := s.node(i, host(i)); err != nil {
			return err
		}
		key := datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:" + name(i), Name: block(i).String()}
		if _, err := s.store.Put(s.ctx, key, []byte(`{"state":"`+string(api.AffinityConfirmed)+`","deleted":false}`), datastore.Always()); err != nil {
			return err
		}
	}
	return nil
}

func name(i int) string { return fmt.Sprintf("sim%d", i) }

func (s *simulation) node(i int, addr string) error {
	n := &api.Node{}
	n.Name = name(i)
	inner := block(i).Addr().Next().String()
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: addr + "/24", IPv4IPIPTunnelAddr: inner}
	n.Spec.IPv4VXLANTunnelAddr = inner
	return datastore.For[api.Node](s.store).Apply(s.ctx, n)
}

func (s *simulation) mode(mode string) error {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: pool}}
	p.Name = "sim"
	p.Default()
	switch mode {
	case "IPIP":
		p.Spec.IPIPMode = api.EncapAlways
	case "VXLAN":
		p.Spec.VXLANMode = api.EncapAlways
	}
	return datastore.For[api.IPPool](s.store).Apply(s.ctx, p)
}

func (s *simulation) one(mode string, changes int) error {
	dev := map[string]string{"IPIP": "tunl0", "VXLAN": "vxlan.calico"}[mode]
	all, err := s.switchOver(mode, dev)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	rss := s.rss()
	var took []time.Duration
	for c := range changes {
		d, err := s.move(c*s.n/changes, mode, dev)
		if err != nil {
			return err
		}
		took = append(took, d)
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("| %s | %.0f | %.1f | %.1f | %.1f |\n", mode, ms(all), rss, ms(took[len(took)/2]), ms(took[len(took)*99/100]))
	return nil
}

// switchOver sets the pool's mode and waits for every route.
func (s *simulation) switchOver(mode, dev string) (time.Duration, error) {
	if err := s.mode(mode); err != nil {
		return 0, err
	}
	begin := time.Now()
	err := s.until(func() (bool, error) {
		l, err := netlink.LinkByName(dev)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF)
		return len(list) >= s.n, err
	})
	return time.Since(begin), err
}

// until looks again and again, for a limited time.
func (s *simulation) until(done func() (bool, error)) error {
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(100 * time.Microsecond) {
		if ok, err := done(); ok || err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return context.DeadlineExceeded
}

// move gives one host another address, waits until this host sends there, and moves it back.
func (s *simulation) move(i int, mode, dev string) (time.Duration, error) {
	to := strings.Replace(host(i), "10.200.", "10.201.", 1)
	if err := s.node(i, to); err != nil {
		return 0, err
	}
	begin := time.Now()
	there := func() (bool, error) { return gateway(block(i), to) }
	if mode == "VXLAN" { // then the forwarding entry changes, not the route
		there = func() (bool, error) { return entry(dev, to) }
	}
	if err := s.until(there); err != nil {
		return 0, fmt.Errorf("change of %s: %w", name(i), err)
	}
	return time.Since(begin), s.node(i, host(i))
}

// gateway reports whether a route leads to a host.
func gateway(dst netip.Prefix, to string) (bool, error) {
	routes, err := netlink.RouteGet(dst.Addr().Next().AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Gw.String() == to, err
}

// entry reports whether there is a forwarding entry to a host.
func entry(dev, to string) (bool, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return false, err
	}
	list, err := netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	return slices.ContainsFunc(list, func(e netlink.Neigh) bool { return e.IP.String() == to }), err
}

// rss is the agent's memory in MiB, 0 if no process is named.
func (s *simulation) rss() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kb float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kb); err == nil {
			return kb / 1024
		}
	}
	return 0
}
