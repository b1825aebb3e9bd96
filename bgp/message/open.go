package message

import (
	"fmt"
	"net/netip"
	"time"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// asTrans stands for a four-octet AS in two-octet fields (RFC 6793 §9).
const asTrans = 23456

// maxRestartTime is the greatest restart time the 12-bit field can carry (RFC 4724 §3).
const maxRestartTime = 4095 * time.Second

// MaxLongLived is the greatest stale time that the 24-bit field can carry (RFC 9494 §3.1).
const MaxLongLived = (1<<24 - 1) * time.Second

// Open is an OPEN message (RFC 4271 §4.2) with the capabilities that this speaker uses. Comparable.
type Open struct {
	ASN          uint32
	HoldTime     time.Duration // 0 or at least 3 s, whole seconds
	ID           netip.Addr    // IPv4 form
	Families     Families      // multiprotocol (RFC 4760); IPv4 alone when the peer sent none
	RouteRefresh bool          // RFC 2918
	FourOctetAS  bool          // RFC 6793
	Restart      Restart       // RFC 4724
	LongLived    LongLived     // RFC 9494; sent only together with Restart
	// ExtendedNextHop says that routes of IPv4 may have an IPv6 next hop (RFC 8950).
	ExtendedNextHop bool
	AddPath         AddPath // RFC 7911
}

// AddPath is the ADD-PATH capability (RFC 7911 §4): the families of which the sender takes, and of which it can
// send, several paths to one destination. The zero value means that it is absent.
type AddPath struct{ Receive, Send Families }

// With is what two ends agree on: the families whose routes come in and go out with path identifiers.
func (a AddPath) With(peer AddPath) (in, out Families) {
	return a.Receive & peer.Send, a.Send & peer.Receive
}

func (a AddPath) capability() *wire.CapAddPath {
	var tuples []*wire.CapAddPathTuple
	for _, f := range AllFamilies() {
		mode := wire.BGP_ADD_PATH_NONE
		if a.Receive.Has(f) {
			mode |= wire.BGP_ADD_PATH_RECEIVE
		}
		if a.Send.Has(f) {
			mode |= wire.BGP_ADD_PATH_SEND
		}
		if mode != wire.BGP_ADD_PATH_NONE {
			tuples = append(tuples, wire.NewCapAddPathTuple(f.wire(), mode))
		}
	}
	return wire.NewCapAddPath(tuples)
}

// addPathOf reads the capability; a mode that the RFC does not define is ignored (RFC 7911 §4).
func addPathOf(c *wire.CapAddPath) AddPath {
	var a AddPath
	for _, t := range c.Tuples {
		f, ok := familyOf(t.Family.Afi(), t.Family.Safi())
		if !ok || t.Mode > wire.BGP_ADD_PATH_BOTH {
			continue
		}
		if t.Mode&wire.BGP_ADD_PATH_RECEIVE != 0 {
			a.Receive |= f.Set()
		}
		if t.Mode&wire.BGP_ADD_PATH_SEND != 0 {
			a.Send |= f.Set()
		}
	}
	return a
}

// Restart is the graceful restart capability (RFC 4724 §3). The zero value means that it is absent.
type Restart struct {
	Supported  bool
	Restarting bool          // the R bit: the sender has just restarted
	Time       time.Duration // how long its routes may be kept
	Families   Families      // families it takes part with
	Forwarding Families      // families whose forwarding state survived (the F bit)
}

// LongLived is the long-lived graceful restart capability (RFC 9494 §3.1). The zero value means that it is
// absent.
type LongLived struct {
	Time     time.Duration // how long routes may be kept after the restart time; the shortest of the families
	Families Families      // families it takes part with
}

// Encode returns the whole message.
func (o Open) Encode() ([]byte, error) {
	var caps []wire.ParameterCapabilityInterface
	for _, f := range AllFamilies() {
		if o.Families.Has(f) {
			caps = append(caps, wire.NewCapMultiProtocol(f.wire()))
		}
	}
	if o.RouteRefresh {
		caps = append(caps, wire.NewCapRouteRefresh())
	}
	if o.ExtendedNextHop {
		caps = append(caps, wire.NewCapExtendedNexthop([]*wire.CapExtendedNexthopTuple{wire.NewCapExtendedNexthopTuple(IPv4.wire(), wire.AFI_IP6)}))
	}
	if o.AddPath != (AddPath{}) {
		caps = append(caps, o.AddPath.capability())
	}
	as := o.ASN
	if o.FourOctetAS {
		caps = append(caps, wire.NewCapFourOctetASNumber(o.ASN))
	}
	if as > 0xffff {
		as = asTrans
	}
	if o.Restart.Supported {
		caps = append(caps, o.Restart.capability())
		if o.LongLived.Families != 0 {
			caps = append(caps, o.LongLived.capability())
		}
	}
	m, err := wire.NewBGPOpenMessage(uint16(as), uint16(o.HoldTime/time.Second), o.ID,
		[]wire.OptionParameterInterface{wire.NewOptionParameterCapability(caps)})
	if err != nil {
		return nil, fmt.Errorf("encode open: router ID %s: %w", o.ID, err)
	}
	return m.Serialize()
}

func (r Restart) capability() *wire.CapGracefulRestart {
	var tuples []*wire.CapGracefulRestartTuple
	for _, f := range AllFamilies() {
		if r.Families.Has(f) {
			tuples = append(tuples, wire.NewCapGracefulRestartTuple(f.wire(), r.Forwarding.Has(f)))
		}
	}
	t := min(r.Time, maxRestartTime)
	return wire.NewCapGracefulRestart(r.Restarting, false, uint16(t/time.Second), tuples)
}

// capability has the F bit: forwarding goes on while this speaker restarts.
func (l LongLived) capability() *wire.CapLongLivedGracefulRestart {
	var tuples []*wire.CapLongLivedGracefulRestartTuple
	for _, f := range AllFamilies() {
		if l.Families.Has(f) {
			tuples = append(tuples, wire.NewCapLongLivedGracefulRestartTuple(f.wire(), true, uint32(min(l.Time, MaxLongLived)/time.Second)))
		}
	}
	return wire.NewCapLongLivedGracefulRestart(tuples)
}

func longLivedOf(c *wire.CapLongLivedGracefulRestart) LongLived {
	var l LongLived
	for _, t := range c.Tuples {
		f, ok := familyOf(t.AFI, t.SAFI)
		if !ok {
			continue
		}
		if d := time.Duration(t.RestartTime) * time.Second; l.Families == 0 || d < l.Time {
			l.Time = d
		}
		l.Families |= f.Set()
	}
	return l
}

// DecodeOpen reads the body of an OPEN message and checks what can be checked without knowing the
// session: lengths, version, hold time, identifier (RFC 4271 §6.2). The error is an *Error.
func DecodeOpen(body []byte) (Open, error) {
	if err := checkOpenLengths(body); err != nil {
		return Open{}, err
	}
	if body[0] != 4 {
		return Open{}, &Error{Code: codeOpen, Subcode: subBadVersion, Data: []byte{0, 4}, Text: fmt.Sprintf("BGP version %d, want 4", body[0])}
	}
	var m wire.BGPOpen
	if err := m.DecodeFromBytes(body); err != nil {
		return Open{}, fault(err, codeOpen, 0)
	}
	o := Open{ASN: uint32(m.MyAS), HoldTime: time.Duration(m.HoldTime) * time.Second, ID: m.ID}
	if m.HoldTime == 1 || m.HoldTime == 2 {
		return Open{}, &Error{Code: codeOpen, Subcode: subBadHoldTime, Text: fmt.Sprintf("hold time %d s, want 0 or at least 3", m.HoldTime)}
	}
	if !m.ID.Is4() || m.ID.IsUnspecified() {
		return Open{}, &Error{Code: codeOpen, Subcode: subBadID, Text: "router ID 0.0.0.0"}
	}
	for _, p := range m.OptParams {
		if c, ok := p.(*wire.OptionParameterCapability); ok {
			o.capabilities(c.Capability)
		}
	}
	if !o.Restart.Supported {
		o.LongLived = LongLived{} // RFC 9494 §3.1: it counts only beside the other one
	}
	if o.Families == 0 {
		o.Families = IPv4.Set()
	}
	return o, nil
}

// checkOpenLengths walks the optional parameters and the capabilities inside them (RFC 5492 §4), so that
// the codec is only given what adds up.
func checkOpenLengths(body []byte) error {
	if len(body) < 10 {
		return &Error{Code: codeHeader, Subcode: subBadLength, Text: "OPEN message is short"}
	}
	params := body[10:]
	if int(body[9]) != len(params) {
		return &Error{Code: codeOpen, Text: "optional parameters do not fill the OPEN message"}
	}
	for len(params) > 0 {
		if len(params) < 2 || len(params) < 2+int(params[1]) {
			return &Error{Code: codeOpen, Text: "optional parameter is cut off"}
		}
		kind, value := params[0], params[2:2+int(params[1])]
		params = params[2+len(value):]
		if kind != wire.BGP_OPT_CAPABILITY || len(value) > 253 {
			return &Error{Code: codeOpen, Subcode: subBadParameter, Text: fmt.Sprintf("optional parameter type %d is not supported", kind)}
		}
		for len(value) > 0 {
			if len(value) < 2 || len(value) < 2+int(value[1]) {
				return &Error{Code: codeOpen, Text: "capability is cut off"}
			}
			value = value[2+int(value[1]):]
		}
	}
	return nil
}

func (o *Open) capabilities(caps []wire.ParameterCapabilityInterface) {
	for _, c := range caps {
		switch c := c.(type) {
		case *wire.CapMultiProtocol:
			if f, ok := familyOf(c.CapValue.Afi(), c.CapValue.Safi()); ok {
				o.Families |= f.Set()
			}
		case *wire.CapRouteRefresh:
			o.RouteRefresh = true
		case *wire.CapFourOctetASNumber:
			o.FourOctetAS, o.ASN = true, c.CapValue
		case *wire.CapExtendedNexthop:
			for _, t := range c.Tuples {
				f, ok := familyOf(t.NLRIAFI, uint8(t.NLRISAFI))
				o.ExtendedNextHop = o.ExtendedNextHop || (ok && f == IPv4 && t.NLRISAFI <= 255 && t.NexthopAFI == wire.AFI_IP6)
			}
		case *wire.CapAddPath:
			o.AddPath = addPathOf(c)
		case *wire.CapGracefulRestart:
			o.Restart = restartOf(c)
		case *wire.CapLongLivedGracefulRestart:
			o.LongLived = longLivedOf(c)
		}
	}
}

func restartOf(c *wire.CapGracefulRestart) Restart {
	r := Restart{Supported: true, Restarting: c.Flags&0x8 != 0, Time: time.Duration(c.Time) * time.Second}
	for _, t := range c.Tuples {
		f, ok := familyOf(t.AFI, t.SAFI)
		if !ok {
			continue
		}
		r.Families |= f.Set()
		if t.Flags&0x80 != 0 {
			r.Forwarding |= f.Set()
		}
	}
	return r
}

// CheckPeer checks an OPEN against what is configured (RFC 4271 §6.2, RFC 6286): the peer's AS, and an
// identifier that is not ours when the peer is internal. The error is an *Error.
func (o Open) CheckPeer(wantAS, localAS uint32, localID netip.Addr) error {
	if o.ASN != wantAS {
		return &Error{Code: codeOpen, Subcode: subBadPeerAS, Text: fmt.Sprintf("wrong AS: peer says %d, configured %d", o.ASN, wantAS)}
	}
	if o.ASN == localAS && o.ID == localID {
		return &Error{Code: codeOpen, Subcode: subBadID, Text: fmt.Sprintf("peer uses our own router ID %s", o.ID)}
	}
	return nil
}
