// Package tunnels makes VXLAN and IPIP devices as desired.Tunnel says. An Applier is meant for a reconcile.Table.
//
// Only devices of the names given to New are looked at, and of those only devices of the kind that belongs to the name
// are ours to change or delete: one of another kind is somebody else's, which Put reports as ErrForeign and leaves alone.
package tunnels

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/ipip"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// ErrForeign means that a device of that name exists and is of another kind: it is not ours to remove.
var ErrForeign = errors.New("a device of this name exists that is not ours")

// maxDumps bounds how often a listing is repeated that the kernel says was interrupted by a change.
const maxDumps = 5

// Applier is the tunnel devices of one network namespace, which the calling thread must be in. Besides Watch and
// Implementation it is safe for use by one goroutine at a time.
type Applier struct {
	handle *netlink.Handle
	names  []string
	ipip   ipipDevice
	plain  map[string]bool // devices that Put was told to keep without checksum offload
}

var _ reconcile.Applier[string, desired.Tunnel] = (*Applier)(nil)

// New works through a handle, which the caller closes, on devices of these names.
func New(handle *netlink.Handle, names ...string) *Applier {
	return &Applier{handle: handle, names: names, ipip: ipipDevice{options: ipip.Options{Handle: handle}}, plain: map[string]bool{}}
}

// Close gives up what the process holds; the devices stay as they are.
func (a *Applier) Close() { a.ipip.close() }

// Dump lists the devices.
func (a *Applier) Dump(ctx context.Context) (map[string]desired.Tunnel, error) {
	out := map[string]desired.Tunnel{}
	for _, name := range a.names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t, there, err := a.dumpOne(name)
		if err != nil {
			return nil, err
		}
		if there {
			out[name] = t
		}
	}
	return out, nil
}

func (a *Applier) dumpOne(name string) (t desired.Tunnel, there bool, err error) {
	if name == desired.IPIPDevice {
		return a.dumpIPIP(name)
	}
	v, err := a.find(name)
	if errors.Is(err, ErrForeign) || v == nil && err == nil {
		return t, false, nil
	}
	if err != nil {
		return t, false, err
	}
	t, err = a.value(v)
	return t, err == nil, err
}

// link is the device of a name; nil when there is none.
func (a *Applier) link(name string) (netlink.Link, error) {
	link, err := a.handle.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return link, nil
}

// find is the VXLAN device of a name; nil when there is none.
func (a *Applier) find(name string) (*netlink.Vxlan, error) {
	link, err := a.link(name)
	if link == nil || err != nil {
		return nil, err
	}
	v, ok := link.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("interface %s is a %s: %w", name, link.Type(), ErrForeign)
	}
	return v, nil
}

// value is a device as a desired one.
func (a *Applier) value(v *netlink.Vxlan) (desired.Tunnel, error) {
	t := desired.Tunnel{VNI: v.VxlanId, Port: v.Port, MAC: v.HardwareAddr.String(), MTU: v.MTU}
	t.Local, _ = netip.AddrFromSlice(v.SrcAddr)
	t.Local = t.Local.Unmap()
	if under, err := a.handle.LinkByIndex(v.VtepDevIndex); err == nil {
		t.Underlay = under.Attrs().Name
	}
	switch {
	case v.RawFlags&unix.IFF_UP == 0:
		t.Broken = "down"
	case v.Learning:
		t.Broken = "learning"
	case v.FlowBased:
		t.Broken = "external"
	case v.MasterIndex != 0:
		t.Broken = "enslaved"
	}
	return t, a.addresses(v, &t)
}

// addresses fills in those of a device, and its offload.
func (a *Applier) addresses(link netlink.Link, t *desired.Tunnel) error {
	if name := link.Attrs().Name; a.plain[name] { // otherwise it does not matter, and is not turned on behind somebody's back
		on, err := TxChecksum(name)
		t.NoOffload = err == nil && !on
	}
	addrs, err := a.addrs(link)
	if err != nil {
		return err
	}
	var single []netip.Addr
	for _, p := range addrs {
		if !p.IsSingleIP() {
			t.Broken = "address " + p.String()
			continue
		}
		single = append(single, p.Addr())
	}
	t.Addrs = desired.NewAddrSet(single...)
	return nil
}

// addrs leaves out link-local ones, which the kernel makes itself.
func (a *Applier) addrs(link netlink.Link) ([]netip.Prefix, error) {
	var list []netlink.Addr
	var err error
	for range maxDumps {
		if list, err = a.handle.AddrList(link, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	var out []netip.Prefix
	for _, ad := range list {
		addr, ok := netip.AddrFromSlice(ad.IP)
		bits, _ := ad.Mask.Size()
		if addr = addr.Unmap(); ok && !addr.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(addr, bits))
		}
	}
	return out, nil
}

// Put makes the device, or changes the one that is there. A device that differs in what the kernel cannot change is
// made anew; its routes, neighbours and forwarding table go with it and have to be written again.
func (a *Applier) Put(_ context.Context, name string, t desired.Tunnel) error {
	if t.Encap == desired.EncapIPIP {
		return a.putIPIP(name, t)
	}
	mac, err := net.ParseMAC(t.MAC)
	if err != nil {
		return fmt.Errorf("tunnel %s: MAC %q: %w", name, t.MAC, err)
	}
	under, err := a.handle.LinkByName(t.Underlay)
	if err != nil {
		return fmt.Errorf("tunnel %s: find underlay %q: %w", name, t.Underlay, err)
	}
	v, err := a.find(name)
	if err != nil {
		return err
	}
	if v != nil && !fits(v, t, under.Attrs().Index) {
		if err := a.handle.LinkDel(v); err != nil {
			return fmt.Errorf("remove %s to make it anew: %w", name, err)
		}
		v = nil
	}
	if v == nil {
		if v, err = a.create(name, t, under.Attrs().Index, mac); err != nil {
			return err
		}
	}
	return a.adjust(v, t, mac)
}

// fits reports whether the device has everything right that cannot be changed on it.
func fits(v *netlink.Vxlan, t desired.Tunnel, underlay int) bool {
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	return v.VxlanId == t.VNI && v.Port == t.Port && v.VtepDevIndex == underlay && local.Unmap() == t.Local &&
		!v.Learning && !v.FlowBased
}

func (a *Applier) create(name string, t desired.Tunnel, underlay int, mac net.HardwareAddr) (*netlink.Vxlan, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, t.MTU, mac
	v := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: t.VNI, Port: t.Port, VtepDevIndex: underlay, SrcAddr: t.Local.AsSlice(),
		UDPCSum: true,
	}
	if err := a.handle.LinkAdd(v); err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	made, err := a.find(name)
	if err == nil && made == nil {
		err = fmt.Errorf("create %s: it is gone again", name)
	}
	return made, err
}

// adjust sets what can be set on a device that exists: MAC, MTU, addresses, and up as the last.
func (a *Applier) adjust(v *netlink.Vxlan, t desired.Tunnel, mac net.HardwareAddr) error {
	if v.MasterIndex != 0 {
		if err := a.handle.LinkSetNoMaster(v); err != nil {
			return fmt.Errorf("free %s from its bridge: %w", v.Name, err)
		}
	}
	if v.HardwareAddr.String() != mac.String() {
		if err := a.handle.LinkSetHardwareAddr(v, mac); err != nil {
			return fmt.Errorf("set MAC of %s: %w", v.Name, err)
		}
	}
	return a.bringUp(v, t)
}

// bringUp sets MTU and addresses, then the device up.
func (a *Applier) bringUp(link netlink.Link, t desired.Tunnel) error {
	at := link.Attrs()
	if t.MTU > 0 && at.MTU != t.MTU {
		if err := a.handle.LinkSetMTU(link, t.MTU); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", t.MTU, at.Name, err)
		}
	}
	a.plain[at.Name] = t.NoOffload
	if t.NoOffload {
		if err := stopTxChecksum(at.Name); err != nil {
			return err
		}
	}
	if err := looseReversePath(at.Name); err != nil {
		return err
	}
	if err := a.setAddrs(link, t.Addrs.Addrs()); err != nil {
		return err
	}
	if err := a.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", at.Name, err)
	}
	return nil
}

// looseReversePath lets packets in by the device whose way back leads elsewhere (RFC 3704 §2.4), also where the host is
// strict about that: while a pool's encapsulation changes, the other host may still send by the tunnel when this one's
// routes do not lead there any more. The kernel takes the greater of this value and that of "all" (ip-sysctl.rst).
func looseReversePath(device string) error {
	const loose = "2"
	path := "/proc/sys/net/ipv4/conf/" + device + "/rp_filter"
	if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == loose {
		return nil
	}
	if err := os.WriteFile(path, []byte(loose), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("let packets in by %s whose way back leads elsewhere: %w", device, err)
	}
	return nil
}

// setAddrs adds before it removes.
func (a *Applier) setAddrs(v netlink.Link, want []netip.Addr) error {
	have, err := a.addrs(v)
	if err != nil {
		return err
	}
	for _, w := range want {
		p := netip.PrefixFrom(w, w.BitLen())
		if slices.Contains(have, p) {
			continue
		}
		ad := &netlink.Addr{IPNet: ipNet(p)}
		if w.Is6() {
			ad.Flags = unix.IFA_F_NODAD
		}
		if err := a.handle.AddrAdd(v, ad); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", w, v.Attrs().Name, err)
		}
	}
	for _, p := range have {
		if p.IsSingleIP() && slices.Contains(want, p.Addr()) {
			continue
		}
		if err := a.handle.AddrDel(v, &netlink.Addr{IPNet: ipNet(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", p, v.Attrs().Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Delete removes the device. One that is gone, or that is not ours, is no error.
func (a *Applier) Delete(_ context.Context, name string) error {
	if name == desired.IPIPDevice {
		return a.deleteIPIP(name)
	}
	v, err := a.find(name)
	if errors.Is(err, ErrForeign) || v == nil && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.handle.LinkDel(v); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Ours reports whether an interface has the name of one of the devices.
func (a *Applier) Ours(name string) bool {
	return slices.Contains(a.names, name)
}
