package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// Addresses that are the same on every host (spec/calico.md §4): the container's way out is a link-local address that
// no interface has, so that a container can move without a change inside.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee") // EUI-64 of hostMAC; the host end does have it
	default4 = netip.MustParsePrefix("0.0.0.0/0")
	default6 = netip.MustParsePrefix("::/0")
)

// hostMAC is the hardware address of both ends of every pair. On a wire with two ends nobody compares the source with
// his own address: the kernel takes a frame for its own by the destination only, so equal addresses work, and the
// container's neighbour entry for its gateway never changes.
const hostMAC = "ee:ee:ee:ee:ee:ee"

// aliasPrefix marks the host end of a pair as ours (ip link shows it as "alias"): maneki:<network>/<container>/<ifname>.
const aliasPrefix = "maneki:"

// maxAlias is the kernel's IFALIASZ less the final zero.
const maxAlias = 255

// errNameTaken means that the host has an interface of the name wanted.
var errNameTaken = errors.New("interface name is taken")

// pair is what createPair needs to know: one veth pair, before it has addresses.
type pair struct {
	hostName, ifName string
	mac              net.HardwareAddr // of the container's end
	mtu              int
	alias            string
	v4, v6           bool
	forwarding       bool       // let the container forward packets
	linkLocal        netip.Addr // IPv6 address of the host's end
}

// inside is the container's end of a pair: its index and a netlink socket in its namespace.
type inside struct {
	index   int
	netlink *netlink.Handle
}

func (in *inside) close() { in.netlink.Close() }

// parseMAC is net.ParseMAC for constants and checked values.
func parseMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(fmt.Sprintf("hardware address %q: %v", s, err))
	}
	return mac
}

// createPair makes the pair with each end in its namespace under its final name, in one request: there is no moment at
// which an end is visible in the other's place or has another name. Both ends are up on return. When it fails nothing
// is left, except with errNameTaken, where what is there is somebody else's.
func (h *host) createPair(ns *os.File, p pair) (_ *inside, err error) {
	in := &inside{}
	if err := visit(ns, h.home, func() error { return h.createInside(p, in) }); err != nil {
		if in.netlink != nil {
			in.close()
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			in.close()
			err = errors.Join(err, h.removeLink(p.hostName))
		}
	}()
	link, err := in.netlink.LinkByName(p.ifName)
	if err != nil {
		return nil, fmt.Errorf("find interface %s in container: %w", p.ifName, err)
	}
	in.index = link.Attrs().Index
	if err := h.bringUp(link.Attrs().ParentIndex, p); err != nil {
		return nil, err
	}
	if err := in.bringUp(link); err != nil {
		return nil, err
	}
	return in, nil
}

// createInside runs on a thread in the container's namespace.
func (h *host) createInside(p pair, in *inside) (err error) {
	if in.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink in container: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = p.ifName, p.mtu, p.mac
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr = p.hostName, parseMAC(hostMAC)
	veth.PeerNamespace = netlink.NsFd(int(h.file.Fd()))
	if err := in.netlink.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return h.whoseName(in.netlink, p)
		}
		return fmt.Errorf("create veth pair %s - %s: %w", p.hostName, p.ifName, err)
	}
	if err := setSysctls(containerSysctls(p)); err != nil {
		// The pair is not up yet, so deleting our end cannot have been noticed by anybody.
		return errors.Join(err, in.netlink.LinkDel(veth))
	}
	return nil
}

// whoseName says which of the two names is taken: the kernel's EEXIST does not.
func (h *host) whoseName(container *netlink.Handle, p pair) error {
	if _, err := container.LinkByName(p.ifName); err == nil {
		return fmt.Errorf("interface %s exists in the container already", p.ifName)
	}
	return fmt.Errorf("%w: %s on the host", errNameTaken, p.hostName)
}

// containerSysctls are set in the container before its interface is up.
func containerSysctls(p pair) desired.Sysctls {
	s := desired.Sysctls{
		// Link-local addresses are made from the hardware address, which both ends share: the container would claim
		// the address of its gateway. It does without one; nothing here needs it.
		"net/ipv6/conf/" + p.ifName + "/addr_gen_mode": "1",
	}
	if p.v6 {
		// A runtime that found IPv6 unused may have switched it off for new interfaces.
		s["net/ipv6/conf/"+p.ifName+"/disable_ipv6"] = "0"
	}
	if p.forwarding {
		return s
	}
	// A new namespace copies the host's ip_forward, and a container that forwards is a way around policy.
	if p.v4 {
		s["net/ipv4/ip_forward"] = "0"
	}
	if p.v6 {
		s["net/ipv6/conf/all/forwarding"] = "0"
	}
	return s
}

// bringUp prepares the host's end and sets it up.
func (h *host) bringUp(index int, p pair) error {
	sysctls := desired.EndpointSysctls(p.hostName, p.v4, p.v6)
	if p.v6 {
		// The address is given by hand below: it must not depend on the system's default for generated ones.
		sysctls["net/ipv6/conf/"+p.hostName+"/addr_gen_mode"] = "1"
	}
	if err := h.do(func() error { return setSysctls(sysctls) }); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Index, attrs.Name, attrs.Alias, attrs.Flags = index, p.hostName, p.alias, net.FlagUp
	end := &netlink.GenericLink{LinkAttrs: attrs, LinkType: "veth"}
	return h.with(func(nl *netlink.Handle) error {
		if err := nl.LinkModify(end); err != nil {
			return fmt.Errorf("set %s up: %w", p.hostName, err)
		}
		if !p.v6 {
			return nil
		}
		return addAddress(nl, end, netip.PrefixFrom(p.linkLocal, 64))
	})
}

// bringUp sets the container's end and its loopback interface up. Runtimes usually have a plugin for lo; without one
// 127.0.0.1 would not answer in the container.
func (in *inside) bringUp(link netlink.Link) error {
	if err := in.netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up in container: %w", link.Attrs().Name, err)
	}
	lo := netlink.NewLinkAttrs()
	lo.Index, lo.Name = 1, "lo" // the kernel makes lo first in every namespace (net/core/dev.c: LOOPBACK_IFINDEX)
	if err := in.netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: lo}); err != nil {
		return fmt.Errorf("set lo up in container: %w", err)
	}
	return nil
}

// address gives the container's end its addresses and the way out.
func (in *inside) address(addrs []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Index = in.index
	link := &netlink.Dummy{LinkAttrs: attrs}
	for _, a := range addrs {
		if err := addAddress(in.netlink, link, a); err != nil {
			return err
		}
	}
	for _, r := range containerRoutes(in.index, addrs) {
		if err := in.netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route %s in container: %w", r.String(), err)
		}
	}
	for _, gw := range gateways(addrs) {
		// A permanent entry spares the container the question and the wait for an answer. It also makes the gateway
		// reachable where the host would not answer: proxy ARP is silent for an address that the host has no route to
		// other than the asking interface's, as on a host without a default route.
		n := &netlink.Neigh{
			LinkIndex: in.index, State: netlink.NUD_PERMANENT, IP: gw.AsSlice(), HardwareAddr: parseMAC(hostMAC),
		}
		if err := in.netlink.NeighSet(n); err != nil {
			return fmt.Errorf("add neighbour %s in container: %w", gw, err)
		}
	}
	return nil
}

func families(addrs []netip.Prefix) (v4, v6 bool) {
	for _, a := range addrs {
		v4, v6 = v4 || a.Addr().Is4(), v6 || a.Addr().Is6()
	}
	return v4, v6
}

func gateways(addrs []netip.Prefix) (gws []netip.Addr) {
	v4, v6 := families(addrs)
	if v4 {
		gws = append(gws, gateway4)
	}
	if v6 {
		gws = append(gws, gateway6)
	}
	return gws
}

// containerRoutes are the routes of a container, in the order in which they can be added.
func containerRoutes(index int, addrs []netip.Prefix) (routes []netlink.Route) {
	v4, v6 := families(addrs)
	if v4 {
		routes = append(routes,
			netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(gateway4, 32))},
			netlink.Route{LinkIndex: index, Dst: ipNet(default4), Gw: gateway4.AsSlice()})
	}
	if v6 {
		routes = append(routes, netlink.Route{LinkIndex: index, Dst: ipNet(default6), Gw: gateway6.AsSlice()})
	}
	return routes
}

// addAddress adds an address that can be used at once: duplicate address detection would hold it back for a second,
// and there is nobody on the wire but the other end.
func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// ipNet turns a prefix into what package netlink wants; the address keeps its host bits.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// removeLink removes the host's end of a pair and with it the container's. It is no error when it is not there.
func (h *host) removeLink(name string) error {
	link, err := h.link(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if link.Type() != "veth" {
		return fmt.Errorf("interface %s is a %s, not a veth: it is left alone", name, link.Type())
	}
	if err := h.deleteLink(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// setSysctls writes parameters of the calling thread's namespace. One that the kernel does not have is skipped when it
// is of IPv6: the kernel may be without it, and what needs IPv6 fails by itself.
func setSysctls(s desired.Sysctls) error {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		path, want := "/proc/sys/"+name, []byte(s[name])
		err := writeSysctl(path, want)
		if err == nil || errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
			continue
		}
		// A read-only /proc/sys (an agent in a container) is no trouble when the value is right already.
		if have, rerr := os.ReadFile(path); rerr == nil && bytes.Equal(bytes.TrimSpace(have), want) {
			continue
		}
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(name, "/", "."), want, err)
	}
	return nil
}

// writeSysctl is one system call less on each side than os.WriteFile, which also sets the file up for polling.
func writeSysctl(path string, value []byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, value)
	return errors.Join(err, unix.Close(fd))
}
