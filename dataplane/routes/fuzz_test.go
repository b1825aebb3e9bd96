package routes

import (
	"bytes"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// message is the payload of a netlink message.
func message(header []byte, attrs ...*nl.RtAttr) []byte {
	var b bytes.Buffer
	b.Write(header)
	for _, a := range attrs {
		b.Write(a.Serialize())
	}
	return b.Bytes()
}

func routeMessage(family, bits uint8, attrs ...*nl.RtAttr) []byte {
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Protocol = family, bits, 80
	return message(m.Serialize(), attrs...)
}

func number(kind int, n uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(n)) }

// FuzzInterpret: no message makes the watcher panic, and a route message that is understood gives a normal key.
func FuzzInterpret(f *testing.F) {
	metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
	metrics.AddChild(number(unix.RTAX_MTU, 1450))
	f.Add(uint16(unix.RTM_NEWROUTE), routeMessage(unix.AF_INET, 26, nl.NewRtAttr(unix.RTA_DST, []byte{10, 0, 0, 64}),
		nl.NewRtAttr(unix.RTA_GATEWAY, []byte{10, 1, 0, 1}), number(unix.RTA_OIF, 2), number(unix.RTA_TABLE, 254), metrics))
	f.Add(uint16(unix.RTM_DELROUTE), routeMessage(unix.AF_INET6, 128, nl.NewRtAttr(unix.RTA_DST, make([]byte, 16)), number(unix.RTA_PRIORITY, 1024)))
	f.Add(uint16(unix.RTM_NEWROUTE), routeMessage(unix.AF_INET, 0, nl.NewRtAttr(unix.RTA_MULTIPATH, []byte{8, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0})))
	f.Add(uint16(unix.RTM_NEWROUTE), routeMessage(unix.AF_INET, 0, nl.NewRtAttr(unix.RTA_VIA, append([]byte{10, 0}, make([]byte, 16)...))))
	f.Add(uint16(unix.RTM_NEWROUTE), routeMessage(unix.AF_INET, 0, nl.NewRtAttr(unix.RTA_MULTIPATH, []byte{16, 0, 0, 0, 2, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1, 8, 0, 0, 0, 3, 0, 0, 0})))
	f.Add(uint16(unix.RTM_NEWLINK), message(nl.NewIfInfomsg(0).Serialize(), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("cali1"))))
	f.Add(uint16(unix.RTM_DELADDR), message(nl.NewIfAddrmsg(unix.AF_INET).Serialize(), nl.NewRtAttr(unix.IFA_LOCAL, []byte{10, 1, 0, 9})))
	f.Add(uint16(unix.RTM_NEWNETCONF), message([]byte{2, 0, 0, 0}, number(confIfindex, 1<<32-1)))

	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		a := fuzzApplier()
		a.interpret(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data})
		if r, err := parseRoute(data); err == nil && (r.Family == unix.AF_INET || r.Family == unix.AF_INET6) {
			k, ok := keyOf(r)
			if !ok || !k.Dst.IsValid() {
				t.Fatalf("key %v of route %v", k, r)
			}
		}
	})
}

// fuzzApplier holds one route, with a gateway and a source.
func fuzzApplier() *Applier {
	a := &Applier{opts: Options{Tables: []int{254}, Protocols: []int{80}, InterfacePrefixes: []string{"cali"}}, links: newLinkCache()}
	a.links.set(2, linkState{"eth0", true})
	k := desired.NewRouteKey(netip.MustParsePrefix("10.0.0.64/26"))
	r := kernelRoute(k, desired.Route{
		Gateway: netip.MustParseAddr("10.1.0.1"), Src: netip.MustParseAddr("10.1.0.9"), Dev: "eth0", Proto: 80,
	}, map[string]int{"eth0": 2})
	a.held = map[desired.RouteKey][]netlink.Route{k: {*r}}
	return a
}
