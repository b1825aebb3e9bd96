// Command heal takes kernel objects of a running agent away and measures how
// long it takes until everything is as it was: devices with their addresses,
// MAC, MTU and state, routes, neighbours and forwarding entries. Last it gives
// another host a new address and measures until this host's routes, neighbours
// and forwarding entries lead there.
//
// It runs inside a lab host; see bench/run.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// patience is how long something may stay away before that is the result.
	patience = 10 * time.Second
	// poll is how often the kernel is looked at.
	poll = 500 * time.Microsecond
	// settle lets notifications of one repair pass before the next damage.
	settle = 300 * time.Millisecond
)

func main() {
	n := flag.Int("n", 20, "how often each thing is taken away")
	device := flag.String("device", "vxlan.calico", "the tunnel device")
	peer := flag.String("peer-netns", "", "path of another host's network namespace, whose address is changed; empty: not measured")
	flag.Parse()
	b := bench{device: *device, n: *n}
	if err := b.run(*peer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type bench struct {
	device string
	n      int
}

// damage is one thing that is taken away.
type damage struct {
	name string
	do   func(b bench) error
}

func (b bench) run(peer string) error {
	for _, d := range b.damages() {
		times, err := b.measure(d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		print(b.device, d.name, times)
	}
	if peer == "" {
		return nil
	}
	times, err := b.renumber(peer)
	if err != nil {
		return fmt.Errorf("other host's address: %w", err)
	}
	print(b.device, "the other host's underlay address changed", times)
	return nil
}

func print(device, name string, times []time.Duration) {
	slices.Sort(times)
	at := func(share float64) float64 {
		return float64(times[min(len(times)-1, int(share*float64(len(times))))].Microseconds()) / 1000
	}
	fmt.Printf("| %s | %s | %d | %.1f | %.1f | %.1f |\n", device, name, len(times), at(0.5), at(0.99), at(1))
}

func (b bench) damages() []damage {
	list := []damage{
		{"route deleted", func(b bench) error { return b.deleteRoutes(1) }},
		{"all computed and learnt routes deleted", func(b bench) error { return b.deleteRoutes(-1) }},
		{"address deleted", func(b bench) error { return b.deleteAddrs() }},
		{"device set down", func(b bench) error { return b.onDevice(netlink.LinkSetDown) }},
		{"device deleted", func(b bench) error { return b.onDevice(netlink.LinkDel) }},
	}
	if strings.HasPrefix(b.device, "vxlan") {
		list = append(list, []damage{
			{"MAC changed", func(b bench) error {
				return b.onDevice(func(l netlink.Link) error {
					return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{0x66, 0, 0, 0, 0, 1})
				})
			}},
			{"forwarding entry deleted", func(b bench) error { return b.deleteNeighbours(unix.AF_BRIDGE) }},
			{"neighbour deleted", func(b bench) error { return b.deleteNeighbours(unix.AF_INET) }},
		}...)
	}
	return append(list, damage{"all of these at once", func(b bench) error {
		return errors.Join(b.deleteRoutes(-1), b.deleteAddrs(), b.onDevice(netlink.LinkDel))
	}})
}

// measure damages and waits, n times.
func (b bench) measure(d damage) ([]time.Duration, error) {
	want, err := b.steady()
	if err != nil {
		return nil, err
	}
	var times []time.Duration
	for range b.n {
		if err := d.do(b); err != nil {
			return nil, err
		}
		begin := time.Now()
		took, err := await(begin, func() (bool, error) {
			have, err := b.snapshot()
			return have == want, err
		})
		if err != nil {
			have, _ := b.snapshot() // for the message only
			return nil, fmt.Errorf("%w\nwanted\n%s\nthere is\n%s", err, want, have)
		}
		times = append(times, took)
		time.Sleep(settle)
	}
	return times, nil
}

func await(begin time.Time, ok func() (bool, error)) (time.Duration, error) {
	for time.Since(begin) < patience {
		done, err := ok()
		if err == nil && done {
			return time.Since(begin), nil
		}
		time.Sleep(poll)
	}
	return 0, fmt.Errorf("not back within %s", patience)
}

// steady is the state once nothing changes any more.
func (b bench) steady() (string, error) {
	last := ""
	for range 100 {
		now, err := b.snapshot()
		if err == nil && now == last && strings.Contains(now, "dev "+b.device) {
			return now, nil
		}
		last = now
		time.Sleep(settle)
	}
	return "", fmt.Errorf("no steady state with %s: %s", b.device, last)
}

// snapshot is what must come back, as text.
func (b bench) snapshot() (string, error) {
	l, err := netlink.LinkByName(b.device)
	if err != nil {
		return "", err
	}
	at := l.Attrs()
	lines := []string{fmt.Sprintf("%s %s up %t mtu %d", at.Name, l.Type(), at.RawFlags&unix.IFF_UP != 0, at.MTU)}
	if l.Type() == "vxlan" { // the MAC of others does not matter
		lines[0] += " " + at.HardwareAddr.String()
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		lines = append(lines, "address "+a.IPNet.String())
	}
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		entries, err := netlink.NeighList(at.Index, family)
		if err != nil {
			return "", err
		}
		for _, n := range entries {
			if n.State&unix.NUD_PERMANENT != 0 && n.IP != nil {
				lines = append(lines, fmt.Sprintf("entry %d %s %s", family, n.IP, n.HardwareAddr))
			}
		}
	}
	routes, err := ours()
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		dev := "-"
		if out, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			dev = out.Attrs().Name
		}
		lines = append(lines, fmt.Sprintf("route %s via %s dev %s proto %d mtu %d", r.Dst, r.Gw, dev, r.Protocol, r.MTU))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}

// ours are the routes that the agent computes or learns.
func ours() ([]netlink.Route, error) {
	all, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Protocol != 80 && r.Protocol != 81 }), nil
}

// deleteRoutes removes n routes, all when n is negative.
func (b bench) deleteRoutes(n int) error {
	routes, err := ours()
	if err != nil {
		return err
	}
	if n >= 0 {
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Gw == nil })[:n]
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

func (b bench) deleteAddrs() error {
	return b.onDevice(func(l netlink.Link) error {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		for i := range addrs {
			err = errors.Join(err, netlink.AddrDel(l, &addrs[i]))
		}
		return err
	})
}

func (b bench) deleteNeighbours(family int) error {
	return b.onDevice(func(l netlink.Link) error {
		entries, err := netlink.NeighList(l.Attrs().Index, family)
		for i := range entries {
			if n := &entries[i]; n.State&unix.NUD_PERMANENT != 0 && n.IP != nil {
				n.Family = family
				if family == unix.AF_BRIDGE {
					n.Flags = netlink.NTF_SELF
				}
				err = errors.Join(err, netlink.NeighDel(n))
			}
		}
		return err
	})
}

func (b bench) onDevice(do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(b.device)
	if err != nil {
		return err
	}
	return do(l)
}

// renumber gives the other host addresses in turn: the new one is there before
// the old one goes, as when DHCP renews.
func (b bench) renumber(path string) ([]time.Duration, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	addrs, err := h.AddrList(eth0, netlink.FAMILY_V4)
	if err != nil || len(addrs) == 0 {
		return nil, fmt.Errorf("the other host has no address: %w", err)
	}
	old, _ := netip.AddrFromSlice(addrs[0].IP)
	mask, offset := addrs[0].Mask, byte(100)
	var times []time.Duration
	for range b.n {
		next := old.Unmap().As4()
		next[3] = 100 + (offset+1)%100
		offset = next[3] - 100
		fresh := netip.AddrFrom4(next)
		add := &netlink.Addr{IPNet: &net.IPNet{IP: fresh.AsSlice(), Mask: mask}}
		drop := &netlink.Addr{IPNet: &net.IPNet{IP: old.AsSlice(), Mask: mask}}
		if err := h.AddrAdd(eth0, add); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := h.AddrDel(eth0, drop); err != nil {
			return nil, err
		}
		took, err := await(begin, func() (bool, error) { return b.leadsTo(fresh, old) })
		if err != nil {
			have, _ := b.snapshot() // for the message only
			return nil, fmt.Errorf("%w: to %s instead of %s; there is\n%s", err, fresh, old, have)
		}
		times = append(times, took)
		old = fresh
		time.Sleep(settle)
	}
	return times, nil
}

// leadsTo reports whether everything that led to the old address leads to the
// new one.
func (b bench) leadsTo(fresh, old netip.Addr) (bool, error) {
	now, err := b.snapshot()
	words := strings.Fields(now)
	return slices.Contains(words, fresh.String()) && !slices.Contains(words, old.String()), err
}
