package tunnels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/ipip"
	"github.com/manekinet/maneki/desired"
)

// Implementation says what makes a tunnel.
type Implementation string

// What an IPIP device is.
const (
	Kernel   Implementation = "kernel"   // the kernel's own device
	Programs Implementation = "programs" // a veth pair with eBPF programs
)

const (
	// wireDevice is the other end of the veth pair that stands for tunl0.
	wireDevice = desired.IPIPDevice + "-wire"
	// mark is the alias of a kernel's tunl0 that is in our use. The kernel makes the device by itself and does not let
	// go of it, so that it being there says nothing.
	mark = "maneki"
	// outerTTL is enough for delivery to the tunnel's end (RFC 2003 §3.1); the number of RFC 1700.
	outerTTL = 64
	// checkInterval is how soon it is noticed that a program was detached or a map changed, of which the kernel does
	// not tell.
	checkInterval = 250 * time.Millisecond
)

// ends gives both ends their MACs, so that the programs can address the stack. They stay on this host.
func ends() (tunnel, wire net.HardwareAddr) {
	return net.HardwareAddr{0x66, 0, 0, 0, 0, 4}, net.HardwareAddr{0x66, 0, 0, 0, 0, 5}
}

// ipipDevice is what the process knows of tunl0.
type ipipDevice struct {
	mu       sync.Mutex
	is       Implementation // of the device that was put; empty before
	put      desired.Tunnel // as it was put last
	programs *ipip.Programs // nil until they are needed
	options  ipip.Options
	wire     int // index of the other end
}

func (d *ipipDevice) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.programs != nil {
		d.programs.Close()
		d.programs = nil
	}
}

// IPIP says how the IPIP device is made: "kernel", "programs (tcx)", "programs (clsact)", or nothing while there is none;
// and the packets that programs did not carry, by reason.
func (a *Applier) IPIP() (string, map[string]uint64) {
	a.ipip.mu.Lock()
	defer a.ipip.mu.Unlock()
	if a.ipip.is != Programs || a.ipip.programs == nil {
		return string(a.ipip.is), nil
	}
	counts, err := a.ipip.programs.Counts()
	if err != nil {
		counts = nil // the device's own counters are there nevertheless
	}
	return fmt.Sprintf("%s (%s)", Programs, a.ipip.programs.Hook()), counts
}

// findIPIP is the device and what it is; nil when there is none.
func (a *Applier) findIPIP(name string) (netlink.Link, Implementation, error) {
	link, err := a.link(name)
	if link == nil || err != nil {
		return nil, "", err
	}
	switch l := link.(type) {
	case *netlink.Iptun:
		return l, Kernel, nil
	case *netlink.Veth:
		// The other end is named by a number that counts in this namespace only if no other is named beside it.
		if peer, err := a.handle.LinkByIndex(l.ParentIndex); err == nil && l.NetNsID < 0 && peer.Attrs().Name == wireDevice {
			return l, Programs, nil
		}
	}
	return nil, "", fmt.Errorf("interface %s is a %s: %w", name, link.Type(), ErrForeign)
}

func (a *Applier) dumpIPIP(name string) (t desired.Tunnel, there bool, err error) {
	a.ipip.mu.Lock()
	defer a.ipip.mu.Unlock()
	link, is, err := a.findIPIP(name)
	if errors.Is(err, ErrForeign) || link == nil && err == nil {
		return t, false, nil
	}
	if err != nil {
		return t, false, err
	}
	at := link.Attrs()
	if is == Kernel && at.Alias != mark {
		return t, false, nil // as the kernel makes it for everybody
	}
	t = desired.Tunnel{Encap: desired.EncapIPIP, MTU: at.MTU}
	if err := a.addresses(link, &t); err != nil {
		return t, false, err
	}
	if at.RawFlags&unix.IFF_UP == 0 {
		t.Broken = "down"
	}
	if is == Kernel {
		// The kernel's device takes packets for any address from anybody; the packet filter says from whom.
		t.Local, t.Uplinks, t.Hosts = a.ipip.put.Local, a.ipip.put.Uplinks, a.ipip.put.Hosts
		return t, true, nil
	}
	if err := a.dumpPrograms(link, &t); err != nil {
		return t, false, err
	}
	return t, true, nil
}

// dumpPrograms fills in what the programs and their maps say.
func (a *Applier) dumpPrograms(link netlink.Link, t *desired.Tunnel) error {
	d := &a.ipip
	if d.programs == nil {
		t.Broken = "programs of an earlier process"
		return nil
	}
	wire, err := a.handle.LinkByIndex(link.(*netlink.Veth).ParentIndex)
	if err != nil {
		t.Broken = "other end is missing"
		return nil
	}
	if t.Broken = cmp.Or(t.Broken, brokenPair(link, wire)); t.Broken != "" {
		return nil
	}
	config, err := d.programs.Configured()
	if err != nil {
		return err
	}
	t.Local = config.Local
	if config != programConfig(t.Local, link.Attrs().Index, wire.Attrs().Index) {
		t.Broken = "configuration of the programs"
	}
	if ok, err := d.programs.Attached(ipip.Encap, wire.Attrs().Index); err != nil || !ok {
		t.Broken = "program detached"
		return err
	}
	if t.Hosts, err = d.programs.Hosts(); err != nil {
		return err
	}
	t.Uplinks, err = a.attached()
	return err
}

// brokenPair says what differs in the two ends that is no field of a tunnel.
func brokenPair(link, wire netlink.Link) string {
	tunnelMAC, wireMAC := ends()
	this, other := link.Attrs(), wire.Attrs()
	switch {
	case other.RawFlags&unix.IFF_UP == 0:
		return "other end is down"
	case this.HardwareAddr.String() != tunnelMAC.String() || other.HardwareAddr.String() != wireMAC.String():
		return "MAC"
	case this.RawFlags&unix.IFF_NOARP == 0:
		return "ARP"
	case this.MasterIndex != 0 || other.MasterIndex != 0:
		return "enslaved"
	}
	return ""
}

// ethernet reports whether the programs find the packets of an interface where they look. Others beside one that fits,
// such as a modem, carry no tunnel packets.
func ethernet(l netlink.Link) bool { return l.Attrs().EncapType == "ether" }

// attached are those of the uplinks that exist and have the program, or could not use it.
func (a *Applier) attached() (string, error) {
	var up []string
	for _, name := range uplinks(a.ipip.put) {
		l, err := a.link(name)
		if err != nil {
			return "", err
		}
		if l == nil {
			continue
		}
		ok, err := a.ipip.programs.Attached(ipip.Decap, l.Attrs().Index)
		if err != nil {
			return "", err
		}
		if ok || !ethernet(l) {
			up = append(up, name)
		}
	}
	return strings.Join(up, ","), nil
}

func uplinks(t desired.Tunnel) []string {
	if t.Uplinks == "" {
		return nil
	}
	return strings.Split(t.Uplinks, ",")
}

// putIPIP uses the kernel's device where there is one, else the programs.
func (a *Applier) putIPIP(name string, t desired.Tunnel) error {
	a.ipip.mu.Lock()
	defer a.ipip.mu.Unlock()
	link, is, err := a.findIPIP(name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, is, err = a.createIPIP(name, t); err != nil {
			return err
		}
	}
	if is == Kernel {
		err = a.handle.LinkSetAlias(link, mark)
	} else {
		err = a.putPrograms(link, t)
	}
	if err == nil {
		err = a.bringUp(link, t)
	}
	if err != nil {
		return fmt.Errorf("tunnel %s: %w", name, err)
	}
	a.ipip.is, a.ipip.put = is, t
	return nil
}

// createIPIP asks the kernel for a device of its own first. Where that is a module, asking loads it, and loading it
// makes a device tunl0 by itself.
func (a *Applier) createIPIP(name string, t desired.Tunnel) (netlink.Link, Implementation, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := a.handle.LinkAdd(&netlink.Iptun{LinkAttrs: attrs, PMtuDisc: 1})
	switch {
	case err == nil || errors.Is(err, unix.EEXIST):
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
		if err := a.createPair(name, t); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", fmt.Errorf("create %s: %w", name, err)
	}
	link, is, err := a.findIPIP(name)
	if err == nil && link == nil {
		err = fmt.Errorf("create %s: it is gone again", name)
	}
	return link, is, err
}

func (a *Applier) createPair(name string, t desired.Tunnel) error {
	// An end without the other, as when somebody has renamed it.
	if left, err := a.link(wireDevice); err != nil {
		return err
	} else if left != nil {
		if _, ok := left.(*netlink.Veth); !ok {
			return fmt.Errorf("interface %s is a %s: %w", wireDevice, left.Type(), ErrForeign)
		}
		if err := a.handle.LinkDel(left); err != nil {
			return fmt.Errorf("remove %s, an end without %s: %w", wireDevice, name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, t.MTU
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: wireDevice}
	pair.HardwareAddr, pair.PeerHardwareAddr = ends()
	if err := a.handle.LinkAdd(pair); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	// As on the kernel's device, there is no IPv6 link behind it (IN6_ADDR_GEN_MODE_NONE of linux/if_link.h).
	for _, end := range []string{name, wireDevice} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+end+"/addr_gen_mode", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("create %s: keep IPv6 off: %w", name, err)
		}
	}
	return nil
}

func programConfig(local netip.Addr, tunnel, wire int) ipip.Config {
	mac, _ := ends()
	return ipip.Config{Local: local, Tunnel: tunnel, Wire: wire, MAC: [6]byte(mac), TTL: outerTTL}
}

// putPrograms brings both ends and the programs in order. The maps are filled before a program is attached.
func (a *Applier) putPrograms(link netlink.Link, t desired.Tunnel) error {
	d := &a.ipip
	wire, err := a.handle.LinkByIndex(link.(*netlink.Veth).ParentIndex)
	if err != nil {
		return fmt.Errorf("find the other end: %w", err)
	}
	if err := a.preparePair(link, wire, t); err != nil {
		return err
	}
	if d.programs == nil {
		if d.programs, err = ipip.Load(a.ipip.options); err != nil {
			return err
		}
		if err := a.sweep(uplinks(t)); err != nil {
			return err
		}
	}
	d.wire = wire.Attrs().Index
	if err := d.programs.Configure(programConfig(t.Local, link.Attrs().Index, d.wire)); err != nil {
		return err
	}
	if err := d.programs.SetHosts(t.Hosts); err != nil {
		return err
	}
	if err := d.programs.Attach(ipip.Encap, d.wire); err != nil {
		return err
	}
	return a.attachUplinks(uplinks(t), uplinks(d.put))
}

// attachUplinks puts the program onto these interfaces, and takes it off those that were before and are none of them.
func (a *Applier) attachUplinks(want, before []string) error {
	var unfit []string
	for _, name := range want {
		l, err := a.handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find underlay %s: %w", name, err)
		}
		if !ethernet(l) {
			unfit = append(unfit, name+" ("+l.Attrs().EncapType+")")
			continue
		}
		if err := a.ipip.programs.Attach(ipip.Decap, l.Attrs().Index); err != nil {
			return err
		}
	}
	if len(unfit) == len(want) {
		return fmt.Errorf("no underlay with Ethernet headers, which IPIP by programs needs: %s", strings.Join(unfit, ", "))
	}
	for _, name := range before {
		if !slices.Contains(want, name) {
			if err := a.detach(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// preparePair sets what is the same for every pair.
func (a *Applier) preparePair(link, wire netlink.Link, t desired.Tunnel) error {
	tunnelMAC, wireMAC := ends()
	for _, end := range []struct {
		link netlink.Link
		mac  net.HardwareAddr
	}{{link, tunnelMAC}, {wire, wireMAC}} {
		at := end.link.Attrs()
		steps := []struct {
			what string
			skip bool
			do   func() error
		}{
			{"take it off its bridge", at.MasterIndex == 0, func() error { return a.handle.LinkSetNoMaster(end.link) }},
			{"set its MAC", at.HardwareAddr.String() == end.mac.String(), func() error { return a.handle.LinkSetHardwareAddr(end.link, end.mac) }},
			{"turn ARP off", at.RawFlags&unix.IFF_NOARP != 0, func() error { return a.handle.LinkSetARPOff(end.link) }},
			{"turn multicast off", at.RawFlags&unix.IFF_MULTICAST == 0, func() error { return a.handle.LinkSetMulticastOff(end.link) }},
			{"set its MTU", t.MTU == 0 || at.MTU == t.MTU, func() error { return a.handle.LinkSetMTU(end.link, t.MTU) }},
		}
		for _, s := range steps {
			if s.skip {
				continue
			}
			if err := s.do(); err != nil {
				return fmt.Errorf("%s: %s: %w", at.Name, s.what, err)
			}
		}
	}
	return a.handle.LinkSetUp(wire)
}

// sweep detaches what an earlier process has left on other interfaces.
func (a *Applier) sweep(keep []string) error {
	list, err := a.handle.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range list {
		if name := l.Attrs().Name; !slices.Contains(keep, name) && name != wireDevice {
			if err := ipip.Detach(a.ipip.options, ipip.Decap, l.Attrs().Index); err != nil {
				return err
			}
		}
	}
	return nil
}

// detach takes the program off an interface, which may be gone.
func (a *Applier) detach(name string) error {
	l, err := a.link(name)
	if l == nil || err != nil {
		return err
	}
	return ipip.Detach(a.ipip.options, ipip.Decap, l.Attrs().Index)
}

// deleteIPIP removes the pair; the kernel's own device it leaves as the kernel makes it: down and without addresses.
func (a *Applier) deleteIPIP(name string) error {
	a.ipip.mu.Lock()
	defer a.ipip.mu.Unlock()
	link, is, err := a.findIPIP(name)
	if errors.Is(err, ErrForeign) || link == nil && err == nil {
		a.ipip.is, a.ipip.put = "", desired.Tunnel{}
		return a.sweep(nil)
	}
	if err != nil {
		return err
	}
	if is == Kernel {
		err = errors.Join(a.setAddrs(link, nil), a.handle.LinkSetDown(link), a.handle.LinkSetAlias(link, ""))
	} else {
		if err = a.sweep(nil); err == nil {
			err = a.handle.LinkDel(link)
		}
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	a.ipip.is, a.ipip.put = "", desired.Tunnel{}
	return nil
}

// Watch calls changed when a program was detached or a map changed by somebody else, until ctx is done; then it returns
// nil. The kernel announces neither, so it looks.
func (a *Applier) Watch(ctx context.Context, changed func()) error {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !a.intact() {
			changed()
		}
	}
}

// intact is a few system calls on the maps and hooks that programs use.
func (a *Applier) intact() bool {
	d := &a.ipip
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.is != Programs || d.programs == nil {
		return true
	}
	if ok, err := d.programs.Attached(ipip.Encap, d.wire); err != nil || !ok {
		return false
	}
	if up, err := a.attached(); err != nil || up != d.put.Uplinks {
		return false
	}
	hosts, err := d.programs.Hosts()
	config, cerr := d.programs.Configured()
	return err == nil && cerr == nil && hosts == d.put.Hosts && config.Local == d.put.Local && config.Wire == d.wire
}
