package flows

import (
	"encoding/binary"
	"testing"
	"time"

	nflog "github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// attr is one netlink attribute.
func attr(typ uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), data...)
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	return b
}

// FuzzConnection reads anything as what the kernel says of connections
// (linux/netfilter/nfnetlink_conntrack.h). Nothing panics, and what is read can
// be judged: a protocol without ports has none.
func FuzzConnection(f *testing.F) {
	const nested = unix.NLA_F_NESTED
	ip := append(attr(1, []byte{10, 0, 0, 1}), attr(2, []byte{10, 0, 0, 2})...)
	proto := append(attr(1, []byte{6}), append(attr(2, []byte{0x9c, 0x40}), attr(3, []byte{0, 80})...)...)
	tuple := append(attr(1|nested, ip), attr(2|nested, proto)...)
	f.Add(uint16(0), uint16(unix.NLM_F_CREATE), append(append([]byte{2, 0, 0, 0}, attr(1|nested, tuple)...), append(attr(2|nested, tuple), attr(3, []byte{0, 0, 1, 0x8e})...)...))
	f.Add(uint16(2), uint16(0), []byte{10, 0, 0, 0})
	f.Fuzz(func(t *testing.T, typ, flags uint16, data []byte) {
		var e conntrack.Event
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | typ&0xff), Flags: netlink.HeaderFlags(flags)}, Data: data}
		if e.Unmarshal(m) != nil || e.Flow == nil {
			return
		}
		c := connection(*e.Flow)
		_ = c.Packet.String()
	})
}

// FuzzReport reads anything as the report of a denied packet.
func FuzzReport(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80}, "m:0123456789abcdef", uint32(3), int64(0))
	f.Add([]byte(nil), "", uint32(0), int64(-1))
	f.Fuzz(func(t *testing.T, payload []byte, prefix string, index uint32, at int64) {
		stamp := time.Unix(at, 0)
		names := interfaceNames{nameOf: func(int) string { return "cali1" }, known: map[uint32]string{}}
		a := nflog.Attribute{Payload: &payload, Prefix: &prefix, InDev: &index, OutDev: &index, Timestamp: &stamp}
		r, ok := report(a, names)
		if !ok {
			return
		}
		if !r.Packet.Src.IsValid() || !r.Packet.Dst.IsValid() || r.Label != prefix {
			t.Fatalf("report %+v", r)
		}
		if _, ok := report(nflog.Attribute{}, names); ok {
			t.Fatal("a report without a packet is one")
		}
	})
}
