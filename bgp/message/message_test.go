package message

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var cmpNet = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "", "|", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHeader(t *testing.T) {
	ff := strings.Repeat("ff", 16)
	for _, c := range []struct {
		name, in  string
		code, sub uint8 // 0 means accepted
	}{
		{"keepalive", ff + "001304", 0, 0},
		{"short", ff, 1, 2},
		{"marker", "00" + ff[2:] + "001304", 1, 1},
		{"unknown type", ff + "001306", 1, 3},
		{"type 0", ff + "001300", 1, 3},
		{"length 18", ff + "001204", 1, 2},
		{"keepalive with a body", ff + "001404", 1, 2},
		{"length 4097", ff + "100102", 1, 2},
		{"length 65535", ff + "ffff02", 1, 2},
		{"update of 22", ff + "001602", 1, 2},
		{"open of 28", ff + "001c01", 1, 2},
		{"update of 4096", ff + "100002", 0, 0},
	} {
		_, _, err := Header(unhex(t, c.in))
		checkFault(t, c.name, err, c.code, c.sub)
	}
}

func checkFault(t *testing.T, name string, err error, code, sub uint8) {
	t.Helper()
	var e *Error
	if code == 0 {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	if !errors.As(err, &e) || e.Code != code || e.Subcode != sub {
		t.Errorf("%s: error %v (%+v), want code %d/%d", name, err, e, code, sub)
	}
}

func TestOpenRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Open{
			ASN: rapid.Uint32Range(1, 1<<32-1).Draw(t, "asn"), ID: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 255).Draw(t, "id"))}),
			HoldTime: time.Duration(rapid.SampledFrom([]int{0, 3, 90, 65535}).Draw(t, "hold")) * time.Second,
			Families: Families(rapid.IntRange(1, 3).Draw(t, "families")), RouteRefresh: rapid.Bool().Draw(t, "refresh"), FourOctetAS: true,
		}
		if rapid.Bool().Draw(t, "gr") {
			o.Restart = Restart{
				Supported: true, Restarting: rapid.Bool().Draw(t, "r"), Time: 120 * time.Second,
				Families: o.Families, Forwarding: o.Families & Families(rapid.IntRange(0, 3).Draw(t, "f")),
			}
		}
		b, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Header(b); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeOpen(b[HeaderLen:])
		if err != nil || got != o {
			t.Fatalf("got %+v, %v; want %+v", got, err, o)
		}
	})
}

func TestMalformedOpen(t *testing.T) {
	for _, c := range []struct {
		name, in  string
		code, sub uint8
	}{
		{"plain", "04 fc00 005a 0a000001 00", 0, 0},
		{"short", "04 fc00", 1, 2},
		{"version 3", "03 fc00 005a 0a000001 00", 2, 1},
		{"hold time 2", "04 fc00 0002 0a000001 00", 2, 6},
		{"router ID 0", "04 fc00 005a 00000000 00", 2, 3},
		{"parameters longer than the message", "04 fc00 005a 0a000001 08 0206", 2, 0},
		{"octets after the parameters", "04 fc00 005a 0a000001 00 ffff", 2, 0},
		{"parameter cut off", "04 fc00 005a 0a000001 02 0206", 2, 0},
		{"authentication parameter", "04 fc00 005a 0a000001 03 010100", 2, 4},
		{"capability cut off", "04 fc00 005a 0a000001 04 0202 4104", 2, 0},
		{"four-octet AS of 2", "04 fc00 005a 0a000001 06 0204 41020001", 2, 7},
		{"empty graceful restart", "04 fc00 005a 0a000001 04 0202 4000", 2, 7},
		{"unknown capability", "04 fc00 005a 0a000001 05 0203 c80100", 0, 0},
	} {
		_, err := DecodeOpen(unhex(t, c.in))
		checkFault(t, c.name, err, c.code, c.sub)
	}
}

func TestCheckPeer(t *testing.T) {
	id, other := netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2.2.2.2")
	for _, c := range []struct {
		name          string
		open          Open
		want, local   uint32
		code, subcode uint8
	}{
		{"good", Open{ASN: 1, ID: other}, 1, 1, 0, 0},
		{"wrong AS", Open{ASN: 2, ID: other}, 1, 1, 2, 2},
		{"our identifier, internal", Open{ASN: 1, ID: id}, 1, 1, 2, 3},
		{"our identifier, external", Open{ASN: 2, ID: id}, 2, 1, 0, 0},
	} {
		checkFault(t, c.name, c.open.CheckPeer(c.want, c.local, id), c.code, c.subcode)
	}
}

// The attributes of a good route, for the table below.
const (
	origin = "400101 00"
	path   = "400200"
	hop    = "400304 0a000001"
	net24  = "18 c0a801" // 192.168.1.0/24
)

// TestRFC7606 is the table of RFC 7606 §7, attribute by attribute.
func TestRFC7606(t *testing.T) {
	internal := Session{Internal: true, FourOctetAS: true, Families: 3}
	external := Session{FourOctetAS: true, Families: 3}
	extended := Session{FourOctetAS: true, Families: 3, ExtendedNextHop: true, Zone: "eth1"}
	old := Session{Families: 3}
	const (
		ok       = "ok"
		withdraw = "withdraw"
		reset    = "reset"
	)
	for _, c := range []struct {
		name  string
		attrs string
		s     Session
		want  string
	}{
		{"good", origin + path + hop, internal, ok},
		{"origin of 2 octets", "400102 0000" + path + hop, internal, withdraw},
		{"origin 9", "400101 09" + path + hop, internal, withdraw},
		{"origin with flags of an optional", "c00101 00" + path + hop, internal, withdraw},
		{"no origin", path + hop, internal, withdraw},
		{"no path", origin + hop, internal, withdraw},
		{"no next hop", origin + path, internal, withdraw},
		{"path segment type 9", origin + "400206 0901 00000001" + hop, internal, withdraw},
		{"path segment overruns", origin + "400206 0202 00000001" + hop, internal, withdraw},
		{"path segment of zero", origin + "400202 0200" + hop, internal, withdraw},
		{"path with one octet left", origin + "400207 0201 00000001 02" + hop, internal, withdraw},
		{"confederation segment", origin + "400206 0301 00000001" + hop, internal, withdraw},
		{"next hop of 3", origin + path + "400303 0a0000", internal, withdraw},
		{"next hop of 16", origin + path + "400310 00000000000000000000000000000001", internal, withdraw},
		{"next hop of 0", origin + path + "400300", internal, withdraw},
		{"med of 3", origin + path + hop + "800403 000001", internal, withdraw},
		{"local pref of 3", origin + path + hop + "400503 000001", internal, withdraw},
		{"local pref of 3 from outside", origin + path + hop + "400503 000001", external, ok},
		{"atomic aggregate of 1", origin + path + hop + "400601 00", internal, ok},
		{"aggregator of 7", origin + path + hop + "c00707 00000000000000", internal, ok},
		{"communities of 5", origin + path + hop + "c00805 0000000000", internal, withdraw},
		{"communities of 0", origin + path + hop + "c00800", internal, withdraw},
		{"originator of 3", origin + path + hop + "800903 010101", internal, withdraw},
		{"originator from outside", origin + path + hop + "800903 010101", external, ok},
		{"cluster list of 5", origin + path + hop + "800a05 0101010101", internal, withdraw},
		{"extended communities of 7", origin + path + hop + "c01007 00000000000000", internal, withdraw},
		{"IPv6 extended community of 8", origin + path + hop + "c01908 0000000000000000", internal, withdraw},
		{"large communities of 11", origin + path + hop + "c0200b 0000000000000000000000", internal, withdraw},
		{"AS4_PATH garbage before AS_PATH", origin + "c01103 ffffff" + path + hop, internal, ok},
		{"attribute overruns", origin + path + hop + "c008ff 00", internal, withdraw},
		{"attribute header cut off", origin + path + hop + "c0", internal, withdraw},
		{"extended header cut off", origin + path + hop + "d00800", internal, withdraw},
		{"duplicate origin, second bad", origin + path + hop + "400101 09", internal, ok},
		{"unknown well-known", origin + path + hop + "406301 00", internal, reset},
		{"unknown optional transitive", origin + path + hop + "c06301 00", internal, ok},
		{"unknown optional", origin + path + hop + "806301 00", internal, ok},
		{"two MP_REACH", "800e05 0002010000" + "800e05 0002010000", internal, reset},
		{"MP_REACH of 2", origin + path + hop + "800e02 0001", internal, reset},
		{"MP_REACH next hop of 5", origin + path + hop + "800e0a 000201 05 0000000000 00", internal, reset},
		{"MP_REACH next hop overruns", origin + path + hop + "800e05 000201 10 00", internal, reset},
		{"MP_REACH prefix /200", origin + path + hop + "800e17 000201 10 00000000000000000000000000000001 00 c8 00", internal, reset},
		{"MP_UNREACH prefix cut off", origin + path + hop + "800f04 000201 40", internal, reset},
		{"AS 0", origin + "400206 0201 00000000" + hop, internal, withdraw},
		{"AS 0 in a set", origin + "40020c 0201 00000001 0101 00000000" + hop, external, withdraw},
		{"AS 0 in AS4_PATH", origin + "400204 0201 5ba0" + "c01106 0201 00000000" + hop, old, ok},
		{"AS4_PATH from a new speaker", origin + path + "c01106 0201 00000001" + hop, internal, ok},
		{"two octets of an AS from a new speaker", origin + "400204 0201 fde8" + hop, external, withdraw},
		{"aggregator of 6 from a new speaker", origin + path + hop + "c00706 000100000001", internal, ok},
		{"aggregator with flags of a well-known", origin + path + hop + "400708 0000000100000001", internal, ok},
		{"med with flags of a transitive", origin + path + hop + "c00404 00000001", internal, withdraw},
		{"communities with flags of a non-transitive", origin + path + hop + "800804 00010001", internal, withdraw},
		{"originator of 0", origin + path + hop + "800900", internal, withdraw},
		{"cluster list of 0", origin + path + hop + "800a00", internal, withdraw},
		{"large communities of 0", origin + path + hop + "c02000", internal, withdraw},
		{"extended length of a short attribute", "500100 01 00" + path + hop, internal, ok},
		{"MP_REACH of IPv4 with an IPv6 next hop, not agreed", "800e16 000101 10 fe800000000000000000000000000001 00 00", internal, reset},
		{"MP_REACH of IPv4 with a next hop of 24", origin + path + hop + "800e1d 000101 18 000000000000000000000000000000000000000000000000 00", extended, reset},
		{"MP_REACH of IPv4 with a next hop of 0", origin + path + hop + "800e05 000101 00 00", extended, reset},
		{"MP_REACH of a foreign family", origin + path + hop + "800e05 0019460000", internal, ok},
	} {
		attrs := unhex(t, c.attrs)
		body := append([]byte{0, 0, byte(len(attrs) >> 8), byte(len(attrs))}, attrs...)
		body = append(body, unhex(t, net24)...)
		u, err := DecodeUpdate(body, c.s)
		got := ok
		switch {
		case err != nil:
			got = reset
		case u.Malformed != "":
			got = withdraw
			if len(u.Withdrawn) != 1 || len(u.Reach) != 0 {
				t.Errorf("%s: treated as withdraw, yet %+v", c.name, u)
			}
		case len(u.Reach) != 1 || u.Reach[0].Routes[0].Prefix != netip.MustParsePrefix("192.168.1.0/24"):
			t.Errorf("%s: %+v", c.name, u)
		}
		if got != c.want {
			t.Errorf("%s: %s (%v, %q), want %s", c.name, got, err, u.Malformed, c.want)
		}
	}
}

func TestMalformedUpdate(t *testing.T) {
	s := Session{Internal: true, FourOctetAS: true, Families: 3}
	for _, c := range []struct {
		name, in  string
		code, sub uint8
	}{
		{"empty", "", 3, 1},
		{"withdrawn overruns", "ffff 0000", 3, 1},
		{"attributes overrun", "0000 ffff", 3, 1},
		{"withdrawn /33", "0006 21 0102030405 0000", 3, 10},
		{"withdrawn cut off", "0002 18c0 0000", 3, 10},
		{"NLRI cut off", "0000 000e " + origin + path + hop + "18 c0", 3, 10},
		{"fault without any route", "0000 0005 400102 0000", 3, 1},
		{"End-of-RIB", "0000 0000", 0, 0},
		{"End-of-RIB IPv6", "0000 0006 800f03 000201", 0, 0},
	} {
		_, err := DecodeUpdate(unhex(t, c.in), s)
		checkFault(t, c.name, err, c.code, c.sub)
	}
}

func TestEndOfRIB(t *testing.T) {
	for _, f := range AllFamilies() {
		u, err := DecodeUpdate(EndOfRIB(f)[HeaderLen:], Session{Families: 3})
		if err != nil || u.EndOfRIB != f.Set() {
			t.Errorf("%s: %+v, %v", f, u, err)
		}
	}
}

func attrsGen(f Family) *rapid.Generator[Attrs] {
	return rapid.Custom(func(t *rapid.T) Attrs {
		a := Attrs{Origin: rapid.Uint8Range(0, 2).Draw(t, "origin"), LocalPref: DefaultLocalPref, NextHop: addrGen(f).Draw(t, "hop")}
		for range rapid.IntRange(0, 300).Draw(t, "hops") {
			a = a.Prepend(rapid.Uint32Min(1).Draw(t, "as"))
		}
		if rapid.Bool().Draw(t, "med") {
			a.HasMED, a.MED = true, rapid.Uint32().Draw(t, "value")
		}
		if rapid.Bool().Draw(t, "pref") {
			a.HasLocalPref, a.LocalPref = true, rapid.Uint32().Draw(t, "value")
		}
		a.Communities = strings.Repeat("abcd", rapid.IntRange(0, 80).Draw(t, "communities"))
		a.LargeCommunities = strings.Repeat("abcdefghijkl", rapid.IntRange(0, 3).Draw(t, "large"))
		if rapid.Bool().Draw(t, "reflected") {
			a.OriginatorID, a.ClusterList = netip.MustParseAddr("9.9.9.9"), "\x01\x02\x03\x04"
		}
		a.Atomic = rapid.Bool().Draw(t, "atomic")
		if rapid.Bool().Draw(t, "other") {
			a.Other = "\xe0\x23\x04\x00\x00\xfc\x00" // OTC, RFC 9234: not interpreted
		}
		return a
	})
}

func addrGen(f Family) *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		b := make([]byte, f.bits()/8)
		for i := range b {
			b[i] = rapid.Byte().Draw(t, "octet")
		}
		a, _ := netip.AddrFromSlice(b)
		return a
	})
}

// TestUpdateRoundTrip packs random routes and reads them back: all of them, each once, in messages of at
// most 4096 octets.
func TestUpdateRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(AllFamilies()).Draw(t, "family")
		a := attrsGen(f).Draw(t, "attrs")
		four := rapid.Bool().Draw(t, "four octets")
		ids := rapid.Bool().Draw(t, "path identifiers")
		want := map[NLRI]bool{}
		for range rapid.IntRange(1, 1500).Draw(t, "routes") {
			n := NLRI{Prefix: netip.PrefixFrom(addrGen(f).Draw(t, "addr"), rapid.IntRange(0, f.bits()).Draw(t, "bits")).Masked()}
			if ids {
				n.ID = rapid.Uint32().Draw(t, "id")
			}
			want[n] = true
		}
		ns := slices.Collect(maps.Keys(want))
		s := Session{Internal: true, FourOctetAS: four, Families: 3}
		if ids {
			s.PathsIn = f.Set()
		}
		reach, err := AppendReach(nil, f, a, Form{FourOctetAS: four, PathIDs: ids}, ns)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[NLRI]bool{}
		for _, u := range decodeAll(t, reach, s) {
			if len(u.Reach) != 1 || u.Malformed != "" {
				t.Fatalf("%+v", u)
			}
			if d := cmp.Diff(a, u.Reach[0].Attrs, cmpNet); d != "" {
				t.Fatalf("attributes (-want +got):\n%s", d)
			}
			for _, n := range u.Reach[0].Routes {
				seen[n] = true
			}
		}
		if d := cmp.Diff(want, seen, cmpNet); d != "" {
			t.Fatal(d)
		}
		withdraw, err := AppendWithdraw(nil, f, ids, ns)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range decodeAll(t, withdraw, s) {
			for _, n := range u.Withdrawn {
				delete(seen, n)
			}
		}
		if len(seen) > 0 {
			t.Fatalf("not withdrawn: %v", seen)
		}
	})
}

func decodeAll(t *rapid.T, msgs [][]byte, s Session) []Update {
	var out []Update
	for _, b := range msgs {
		typ, n, err := Header(b)
		if err != nil || typ != TypeUpdate || n != len(b)-HeaderLen {
			t.Fatalf("header: %d %d %v", typ, n, err)
		}
		u, err := DecodeUpdate(b[HeaderLen:], s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

func TestAttrsPath(t *testing.T) {
	var a Attrs
	a.ASPath = "\x01\x02\x00\x00\xfc\x05\x00\x00\xfc\x06" // {64517,64518}
	a = a.Prepend(64514).Prepend(64513)
	if a.PathString() != "64513 64514 {64517,64518}" || a.PathLen() != 3 || a.NeighborAS() != 64513 || a.CountAS(64518) != 1 || a.CountAS(1) != 0 {
		t.Errorf("%q %d %d", a.PathString(), a.PathLen(), a.NeighborAS())
	}
}

func TestParseCommunities(t *testing.T) {
	c, l, err := ParseCommunities("64512:100 1:2:3")
	if err != nil || c != "\xfc\x00\x00\x64" || l != "\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03" {
		t.Errorf("%q %q %v", c, l, err)
	}
	for _, bad := range []string{"1", "1:65536", "x:1", "1:2:3:4", "1:2:4294967296", "-1:1"} {
		if _, _, err := ParseCommunities(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzReceive drives the whole receive path: framing, OPEN, UPDATE, NOTIFICATION, ROUTE-REFRESH.
func FuzzReceive(f *testing.F) {
	open, err := Open{
		ASN: 4200000000, HoldTime: 90 * time.Second, ID: netip.MustParseAddr("1.1.1.1"), Families: 3, FourOctetAS: true,
		Restart: Restart{Supported: true, Families: 3, Time: time.Minute},
	}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	a := Attrs{NextHop: netip.MustParseAddr("10.0.0.1"), HasLocalPref: true, LocalPref: 100, Communities: "abcd"}.Prepend(1)
	reach, err := AppendReach(nil, IPv4, a, Form{FourOctetAS: true}, Plain(netip.MustParsePrefix("192.168.0.0/24")))
	if err != nil {
		f.Fatal(err)
	}
	a.NextHop = netip.MustParseAddr("fd00::1")
	reach, err = AppendReach(reach, IPv6, a, Form{FourOctetAS: true}, Plain(netip.MustParsePrefix("fd01::/64")))
	if err != nil {
		f.Fatal(err)
	}
	stream := bytes.Join(append(reach, open, Keepalive(), EndOfRIB(IPv6), unhex(f, strings.Repeat("ff", 16)+"00170500010001"), (&Error{Code: 6, Subcode: 2}).Notification()), nil)
	if reach, err = AppendReach(nil, IPv4, a, Form{FourOctetAS: true}, Plain(netip.MustParsePrefix("192.168.0.0/24"))); err != nil {
		f.Fatal(err)
	}
	long := Open{
		ASN: 1, ID: netip.MustParseAddr("1.1.1.1"), Families: 3, ExtendedNextHop: true,
		Restart: Restart{Supported: true, Families: 3}, LongLived: LongLived{Families: 3, Time: time.Hour},
	}
	second, err := long.Encode()
	if err != nil {
		f.Fatal(err)
	}
	stream = append(append(stream, reach[0]...), second...)
	for bits := range uint8(64) {
		f.Add(bits, stream)
	}
	f.Fuzz(func(t *testing.T, bits uint8, in []byte) {
		s := Session{Internal: bits&1 != 0, FourOctetAS: bits&2 != 0, Families: Families(bits >> 2 & 3), ExtendedNextHop: bits&16 != 0}
		if s.ExtendedNextHop {
			s.Zone = "eth1"
		}
		if bits&32 != 0 {
			s.PathsIn = s.Families
		}
		r := NewReader(bytes.NewReader(in))
		for range 1000 {
			typ, body, err := r.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && asError(err) == nil {
					t.Fatalf("error %v is neither the end nor a fault", err)
				}
				return
			}
			receive(t, typ, body, s)
		}
	})
}

func asError(err error) *Error {
	var e *Error
	errors.As(err, &e)
	return e
}

func receive(t *testing.T, typ Type, body []byte, s Session) {
	switch typ {
	case TypeOpen:
		if o, err := DecodeOpen(body); err == nil {
			if _, err := o.Encode(); err != nil {
				t.Fatal(err)
			}
		} else if asError(err) == nil {
			t.Fatalf("fault %v has no NOTIFICATION", err)
		} else {
			asError(err).Notification()
		}
	case TypeNotification:
		_ = DecodeNotification(body).Error()
	case TypeRouteRefresh:
		DecodeRouteRefresh(body)
	case TypeUpdate:
		u, err := DecodeUpdate(body, s)
		if err != nil {
			if asError(err) == nil {
				t.Fatalf("fault %v has no NOTIFICATION", err)
			}
			asError(err).Notification()
			return
		}
		for _, r := range u.Reach { // what was accepted can be passed on and says the same
			fam := FamilyOf(r.Routes[0].Prefix.Addr())
			msgs, err := AppendReach(nil, fam, r.Attrs, Form{FourOctetAS: true, PathIDs: s.PathsIn.Has(fam)}, r.Routes)
			if err != nil {
				continue // next hop of the other family, or no room: a policy matter
			}
			again, err := DecodeUpdate(msgs[0][HeaderLen:], Session{Internal: true, FourOctetAS: true, Families: 3, ExtendedNextHop: s.ExtendedNextHop, Zone: s.Zone, PathsIn: s.PathsIn})
			if err != nil || again.Malformed != "" || again.Reach[0].Attrs.PathString() != r.Attrs.PathString() || again.Reach[0].Routes[0] != r.Routes[0] {
				t.Fatalf("passed on: %+v, %v", again, err)
			}
		}
	}
}

// TestNextHopOfIPv6 is which of its two addresses is used (RFC 2545, RFC 8950).
func TestNextHopOfIPv6(t *testing.T) {
	const global, local, none = "20010db8000000000000000000000001", "fe800000000000000000000000000001", "00000000000000000000000000000000"
	for _, c := range []struct{ name, hop, zone, want string }{
		{"global", "10" + global, "", "2001:db8::1"},
		{"both", "20" + global + local, "", "2001:db8::1"},
		{"link-local alone", "10" + local, "", "fe80::1"},
		{"global on an interface", "10" + global, "eth1", "2001:db8::1"},
		{"both on an interface", "20" + global + local, "eth1", "fe80::1%eth1"},
		{"link-local alone on an interface", "10" + local, "eth1", "fe80::1%eth1"},
		{"nothing and link-local", "20" + none + local, "eth1", "fe80::1%eth1"},
		{"link-local twice", "20" + local + local, "eth1", "fe80::1%eth1"},
		{"link-local and nothing", "20" + local + none, "eth1", "fe80::1%eth1"},
	} {
		for _, afi := range []string{"0001", "0002"} {
			value := unhex(t, afi+"01"+c.hop+"00 08 0a")
			attrs := append(unhex(t, origin+path), append([]byte{0x80, 14, byte(len(value))}, value...)...)
			u, err := DecodeUpdate(append([]byte{0, 0, 0, byte(len(attrs))}, attrs...), Session{FourOctetAS: true, Families: 3, ExtendedNextHop: true, Zone: c.zone})
			if err != nil || len(u.Reach) != 1 || u.Reach[0].Attrs.NextHop.String() != c.want {
				t.Errorf("%s, AFI %s: %+v, %v; want %s", c.name, afi, u, err, c.want)
			}
		}
	}
}

// TestOpenOfAddPath is RFC 7911 §4: what both ends want counts, and a mode that is not defined does not.
func TestOpenOfAddPath(t *testing.T) {
	in := Open{
		ASN: 64512, HoldTime: 90 * time.Second, ID: netip.MustParseAddr("1.1.1.1"), Families: 3, FourOctetAS: true,
		AddPath: AddPath{Receive: IPv4.Set(), Send: 3},
	}
	b, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := DecodeOpen(b[HeaderLen:])
	if err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	if in, out := (AddPath{Receive: 3, Send: IPv6.Set()}).With(out.AddPath); in != 3 || out != 0 {
		t.Errorf("in %d, out %d", in, out)
	}
	if in, out := (AddPath{Receive: 3, Send: 3}).With(AddPath{}); in != 0 || out != 0 {
		t.Errorf("with a peer that has not the capability: in %d, out %d", in, out)
	}
	wire := unhex(t, "4508 00010103 00020102")
	i := bytes.Index(b, wire)
	if i < 0 {
		t.Fatalf("no ADD-PATH capability %x in %x", wire, b)
	}
	b[i+5] = 4 // the mode of IPv4
	if out, err = DecodeOpen(b[HeaderLen:]); err != nil || out.AddPath != (AddPath{Send: IPv6.Set()}) {
		t.Errorf("an undefined mode: %+v, %v", out.AddPath, err)
	}
}

func TestOpenOfLongLivedAndExtended(t *testing.T) {
	in := Open{
		ASN: 64512, HoldTime: 90 * time.Second, ID: netip.MustParseAddr("1.1.1.1"), Families: 3, FourOctetAS: true, ExtendedNextHop: true,
		Restart: Restart{Supported: true, Families: 3, Time: time.Minute}, LongLived: LongLived{Families: 3, Time: 24 * time.Hour},
	}
	b, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := DecodeOpen(b[HeaderLen:]); err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	in.Restart = Restart{}
	if b, err = in.Encode(); err != nil {
		t.Fatal(err)
	}
	if out, err := DecodeOpen(b[HeaderLen:]); err != nil || out.LongLived != (LongLived{}) {
		t.Errorf("the long-lived capability counts without the other one: %+v, %v", out, err)
	}
}
