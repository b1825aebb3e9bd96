// Package probe finds out what the kernel of this machine can do, by doing it in
// a network namespace of its own that is gone afterwards, and what other
// container networks have left on the machine. It changes nothing else.
package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Result is the outcome of one probe.
type Result struct {
	Feature  string
	Needed   bool   // nothing works without
	For      string // what it is for
	Err      error  // nil: the kernel can do it
	Instead  string // what is used when it is missing; may be empty
	Replaces []string
}

// OK reports whether the kernel can do it.
func (r Result) OK() bool { return r.Err == nil }

// probe is one thing to try on the scratch namespace.
type probe struct {
	Result
	try func(h *netlink.Handle) error
}

// Kernel tries everything and returns the results in a fixed order. The error
// means that no network namespace could be made, which needs root.
func Kernel() ([]Result, error) {
	type outcome struct {
		results []Result
		err     error
	}
	done := make(chan outcome)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and with it
		// the namespace.
		runtime.LockOSThread()
		results, err := inScratch()
		done <- outcome{results, err}
	}()
	o := <-done
	return o.results, o.err
}

func inScratch() ([]Result, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	ns, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	var results []Result
	for _, p := range probes() {
		p.Err = p.try(h)
		results = append(results, p.Result)
	}
	return results, nil
}

// The interfaces of the scratch namespace.
const (
	scratchLink = "probe0"
	scratchPeer = "probe1"
)

func probes() []probe {
	link := func(l netlink.Link) func(h *netlink.Handle) error {
		return func(h *netlink.Handle) error {
			if err := h.LinkAdd(l); err != nil {
				return err
			}
			return h.LinkDel(l)
		}
	}
	attrs := netlink.LinkAttrs{Name: "probe2"}
	return []probe{
		{Result{Feature: "veth", Needed: true, For: "a workload's interface"}, addVeth},
		{Result{Feature: "IPv6", For: "IPv6 pools", Instead: "IPv4 only"}, addAddress("fd00::1/64")},
		{Result{Feature: "blackhole route", Needed: true, For: "a host's own blocks"}, addBlackhole},
		{Result{Feature: "multipath route", For: "several next hops", Instead: "one of them"}, addMultipath},
		{Result{Feature: "rule", For: "policy routing"}, addRule},
		{Result{Feature: "proxy_arp", Needed: true, For: "a workload's gateway"}, hasSetting("ipv4/conf/" + scratchLink + "/proxy_arp")},
		{Result{Feature: "ip_forward", Needed: true, For: "forwarding"}, hasSetting("ipv4/ip_forward")},
		{Result{Feature: "nftables", For: "policy", Replaces: []string{"ip_tables", "ip6_tables", "ipt_REJECT", "xt_mark", "xt_multiport", "xt_addrtype"}}, addTable},
		{Result{Feature: "nftables set", For: "policy", Replaces: []string{"ip_set", "xt_set"}}, addSet},
		{Result{Feature: "nftables nat", For: "natOutgoing"}, addNATChain},
		{Result{Feature: "conntrack", For: "policy and NAT", Replaces: []string{"nf_conntrack_netlink", "xt_conntrack"}}, listConntrack},
		{Result{Feature: "bpf", For: "IPIP without its module", Replaces: []string{"xt_bpf"}}, loadProgram},
		{Result{Feature: "clsact", For: "BPF programs on interfaces"}, addClsact},
		{Result{Feature: "vxlan", For: "VXLAN pools and flannel"}, link(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 4096, Port: 4789})},
		{Result{Feature: "ipip", For: "IPIP pools", Instead: "BPF"}, link(&netlink.Iptun{LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1)})},
		{Result{Feature: "wireguard", For: "encryption"}, link(&netlink.Wireguard{LinkAttrs: attrs})},
		{Result{Feature: "bridge", For: "flannel and Docker"}, link(&netlink.Bridge{LinkAttrs: attrs})},
		{Result{Feature: "vrf", For: "tenants with the same addresses"}, link(&netlink.Vrf{LinkAttrs: attrs, Table: 4096})},
		{Result{Feature: "dummy", For: "addresses of services", Instead: "lo"}, link(&netlink.Dummy{LinkAttrs: attrs})},
	}
}

// addVeth leaves the pair for the probes that follow.
func addVeth(h *netlink.Handle) error {
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: scratchLink}, PeerName: scratchPeer}); err != nil {
		return err
	}
	for _, name := range []string{scratchLink, scratchPeer} {
		l, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetUp(l)
		}
		if err != nil {
			return err
		}
	}
	return addAddress("192.0.2.1/24")(h)
}

func addAddress(text string) func(h *netlink.Handle) error {
	return func(h *netlink.Handle) error {
		l, err := h.LinkByName(scratchLink)
		if err != nil {
			return err
		}
		return h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(text)})
	}
}

func ipNet(text string) *net.IPNet {
	p := netip.MustParsePrefix(text) // a constant of this file
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addBlackhole(h *netlink.Handle) error {
	return h.RouteAdd(&netlink.Route{Dst: ipNet("198.51.100.0/26"), Type: unix.RTN_BLACKHOLE, Protocol: 80})
}

func addMultipath(h *netlink.Handle) error {
	l, err := h.LinkByName(scratchLink)
	if err != nil {
		return err
	}
	hop := func(last byte) *netlink.NexthopInfo {
		return &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: net.IPv4(192, 0, 2, last)}
	}
	return h.RouteAdd(&netlink.Route{Dst: ipNet("203.0.113.0/26"), MultiPath: []*netlink.NexthopInfo{hop(2), hop(3)}})
}

func addRule(h *netlink.Handle) error {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority, r.Mark = unix.AF_INET, 4096, 4096, 1
	return h.RuleAdd(r)
}

// hasSetting looks for a setting of the namespace below /proc/sys/net: the
// kernel shows those of the thread that looks.
func hasSetting(path string) func(*netlink.Handle) error {
	return func(*netlink.Handle) error {
		_, err := os.ReadFile("/proc/sys/net/" + path)
		return err
	}
}

func listConntrack(h *netlink.Handle) error {
	_, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return err
}

func addClsact(h *netlink.Handle) error {
	l, err := h.LinkByName(scratchLink)
	if err != nil {
		return err
	}
	return h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
}

// loadProgram loads the program "return 0" for a socket and forgets it.
func loadProgram(*netlink.Handle) error {
	type instruction struct {
		code uint8
		_    [7]byte // registers, offset and immediate value: all zero
	}
	program := [2]instruction{{code: 0xb7}, {code: 0x95}} // r0 = 0; exit
	license := [4]byte{'G', 'P', 'L', 0}
	attr := struct {
		kind    uint32
		count   uint32
		insns   uint64
		license uint64
		rest    [96]byte
	}{kind: unix.BPF_PROG_TYPE_SCHED_CLS, count: uint32(len(program))}
	attr.insns = uint64(uintptr(unsafe.Pointer(&program)))
	attr.license = uint64(uintptr(unsafe.Pointer(&license)))
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&license)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// Missing reports whether an error means that the kernel does not have a thing,
// rather than that it refused us.
func Missing(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOSYS)
}
