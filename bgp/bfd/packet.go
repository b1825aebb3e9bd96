// Package bfd is Bidirectional Forwarding Detection (RFC 5880) in asynchronous mode: the control packet and
// the state machine of one session. It has no clock, no socket and no goroutine; package monitor gives it
// those. Authentication, demand mode of our own and the echo function are not part of it.
package bfd

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Ports of control packets, and the range that their source ports are from (RFC 5881 §4, RFC 5883 §5).
const (
	PortSingleHop   = 3784
	PortMultihop    = 4784
	FirstSourcePort = 49152
	LastSourcePort  = 65535
)

// PacketLen is the length in octets of a control packet without authentication.
const PacketLen = 24

// State is that of a session (RFC 5880 §4.1).
type State uint8

// The states.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String is the name of RFC 5880.
func (s State) String() string {
	switch s {
	case AdminDown:
		return "AdminDown"
	case Down:
		return "Down"
	case Init:
		return "Init"
	case Up:
		return "Up"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Diag says why a session last changed its state (RFC 5880 §4.1).
type Diag uint8

// The diagnostics that this package gives.
const (
	NoDiagnostic         Diag = 0
	DetectionTimeExpired Diag = 1
	NeighborSignaledDown Diag = 3
	AdministrativelyDown Diag = 7

	forwardingDown Diag = 4
	pathDown       Diag = 5
)

// String is the diagnostic in words.
func (d Diag) String() string {
	switch d {
	case NoDiagnostic:
		return "no diagnostic"
	case DetectionTimeExpired:
		return "nothing was heard within the detection time"
	case NeighborSignaledDown:
		return "the neighbour says that its side is down"
	case forwardingDown:
		return "forwarding plane reset"
	case pathDown:
		return "path down"
	case AdministrativelyDown:
		return "administratively down"
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a control packet (RFC 5880 §4.1). Intervals are whole microseconds. Comparable.
type Packet struct {
	State              State
	Diag               Diag
	Poll, Final        bool
	ControlIndependent bool // the C bit: BFD survives a restart of the control plane
	Demand             bool
	Multiplier         uint8
	Mine, Yours        uint32 // discriminators; Yours is 0 while it is not known
	DesiredMinTx       time.Duration
	RequiredMinRx      time.Duration
	RequiredMinEchoRx  time.Duration
}

// Bits of the second octet.
const (
	bitPoll        = 0x20
	bitFinal       = 0x10
	bitIndependent = 0x08
	bitAuth        = 0x04
	bitDemand      = 0x02
	bitMultipoint  = 0x01
)

// Encode returns the packet's octets.
func (p Packet) Encode() []byte {
	b := make([]byte, PacketLen)
	b[0] = 1<<5 | byte(p.Diag)&0x1f
	b[1] = byte(p.State) << 6
	for _, f := range []struct {
		set bool
		bit byte
	}{{p.Poll, bitPoll}, {p.Final, bitFinal}, {p.ControlIndependent, bitIndependent}, {p.Demand, bitDemand}} {
		if f.set {
			b[1] |= f.bit
		}
	}
	b[2], b[3] = p.Multiplier, PacketLen
	for i, v := range []uint32{p.Mine, p.Yours, micros(p.DesiredMinTx), micros(p.RequiredMinRx), micros(p.RequiredMinEchoRx)} {
		binary.BigEndian.PutUint32(b[4+4*i:], v)
	}
	return b
}

func micros(d time.Duration) uint32 {
	return uint32(min(max(d/time.Microsecond, 0), 1<<32-1))
}

// Decode reads a packet and makes the checks of RFC 5880 §6.8.6 that need no session. The error says which
// one failed; such a packet must be ignored.
func Decode(b []byte) (Packet, error) {
	if len(b) < PacketLen {
		return Packet{}, fmt.Errorf("bfd packet of %d octets: want at least %d", len(b), PacketLen)
	}
	if v := b[0] >> 5; v != 1 {
		return Packet{}, fmt.Errorf("bfd version %d: want 1", v)
	}
	if n := int(b[3]); n < PacketLen || n > len(b) {
		return Packet{}, fmt.Errorf("bfd length field %d: want %d to the %d octets received", n, PacketLen, len(b))
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(b[4+4*i:]) }
	interval := func(i int) time.Duration { return time.Duration(word(i)) * time.Microsecond }
	p := Packet{
		State: State(b[1] >> 6), Diag: Diag(b[0] & 0x1f), Multiplier: b[2], Mine: word(0), Yours: word(1),
		Poll: b[1]&bitPoll != 0, Final: b[1]&bitFinal != 0, ControlIndependent: b[1]&bitIndependent != 0, Demand: b[1]&bitDemand != 0,
		DesiredMinTx: interval(2), RequiredMinRx: interval(3), RequiredMinEchoRx: interval(4),
	}
	switch {
	case p.Multiplier == 0:
		return Packet{}, fmt.Errorf("bfd detect multiplier 0: want 1 to 255")
	case b[1]&bitMultipoint != 0:
		return Packet{}, fmt.Errorf("bfd multipoint bit is set")
	case b[1]&bitAuth != 0:
		return Packet{}, fmt.Errorf("bfd packet is authenticated, the session is not")
	case p.Mine == 0:
		return Packet{}, fmt.Errorf("bfd discriminator 0 of the sender")
	case p.Yours == 0 && p.State != Down && p.State != AdminDown:
		return Packet{}, fmt.Errorf("bfd state %s without our discriminator", p.State)
	}
	return p, nil
}
