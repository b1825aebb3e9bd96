// Package message is the speaker's wire vocabulary: BGP-4 messages (RFC 4271 §4) as small Go values.
//
// The octets themselves are read and written by gobgp's packet codec. This package stands in front of
// it: it checks the framing and every length before the codec sees a byte, applies RFC 7606 (revised
// error handling) attribute by attribute, and hands the rest of the speaker comparable values on netip
// types. It is pure: no goroutine, clock, socket or logger.
package message

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Type is the message type octet of the header (RFC 4271 §4.1, RFC 2918).
type Type uint8

// The message types.
const (
	TypeOpen         Type = 1
	TypeUpdate       Type = 2
	TypeNotification Type = 3
	TypeKeepalive    Type = 4
	TypeRouteRefresh Type = 5
)

// Sizes in octets (RFC 4271 §4). Extended messages (RFC 8654) are not offered, so MaxLen holds for all.
const (
	HeaderLen = 19
	MaxLen    = 4096
)

const markerLen = 16

// minLen is the least total length of each message type (RFC 4271 §6.1).
func minLen(t Type) (int, bool) {
	switch t {
	case TypeOpen:
		return 29, true
	case TypeUpdate:
		return 23, true
	case TypeNotification:
		return 21, true
	case TypeKeepalive:
		return HeaderLen, true
	case TypeRouteRefresh:
		return 23, true
	}
	return 0, false
}

// Header checks the 19 octets of a message header and returns the type and the length of the body in
// octets. The error is an *Error with code 1 (RFC 4271 §6.1).
func Header(h []byte) (Type, int, error) {
	if len(h) < HeaderLen {
		return 0, 0, &Error{Code: codeHeader, Subcode: subBadLength, Text: "message header is short"}
	}
	for _, b := range h[:markerLen] {
		if b != 0xff {
			return 0, 0, &Error{Code: codeHeader, Subcode: subNotSynchronized, Text: "marker is not all ones"}
		}
	}
	length, t := int(binary.BigEndian.Uint16(h[16:18])), Type(h[18])
	least, known := minLen(t)
	if !known {
		return 0, 0, &Error{Code: codeHeader, Subcode: subBadType, Data: h[18:19:19], Text: fmt.Sprintf("message type %d is unknown", t)}
	}
	if length < least || length > MaxLen || (t == TypeKeepalive && length != HeaderLen) {
		return 0, 0, &Error{
			Code: codeHeader, Subcode: subBadLength, Data: h[16:18:18],
			Text: fmt.Sprintf("length %d is not allowed for message type %d", length, t),
		}
	}
	return t, length - HeaderLen, nil
}

// Reader cuts a TCP stream into messages. Its one buffer of MaxLen octets is all the memory a session's
// receive side holds.
type Reader struct{ buf *bufio.Reader }

// NewReader returns a Reader on r.
func NewReader(r io.Reader) *Reader { return &Reader{buf: bufio.NewReaderSize(r, MaxLen)} }

// Buffered reports whether at least one octet is waiting, so that Next may return without reading.
func (r *Reader) Buffered() bool { return r.buf.Buffered() > 0 }

// Next returns the next message's type and body. The body is valid until the following call. Errors are
// those of the underlying reader or an *Error from Header.
func (r *Reader) Next() (Type, []byte, error) {
	head, err := r.buf.Peek(HeaderLen)
	if err != nil {
		return 0, nil, err
	}
	t, n, err := Header(head)
	if err != nil {
		err.(*Error).Data = bytes.Clone(err.(*Error).Data)
		return 0, nil, err
	}
	all, err := r.buf.Peek(HeaderLen + n)
	if err != nil {
		return 0, nil, err
	}
	if _, err := r.buf.Discard(len(all)); err != nil {
		return 0, nil, err
	}
	return t, all[HeaderLen:], nil
}

// Keepalive returns a KEEPALIVE message.
func Keepalive() []byte { return mustSerialize(wire.NewBGPKeepAliveMessage()) }

// EndOfRIB returns the End-of-RIB marker of one family (RFC 4724 §2).
func EndOfRIB(f Family) []byte { return mustSerialize(wire.NewEndOfRib(f.wire())) }

// DecodeRouteRefresh returns the family that the body of a ROUTE-REFRESH asks for; ok is false for
// families that are not ours and for the demarcation messages of RFC 7313, which are to be ignored.
func DecodeRouteRefresh(body []byte) (f Family, ok bool) {
	if len(body) != 4 || body[2] != 0 {
		return 0, false
	}
	return familyOf(binary.BigEndian.Uint16(body), body[3])
}

// mustSerialize encodes a message whose content this package made itself: a failure is a programming
// error, caught by the session's recover.
func mustSerialize(m *wire.BGPMessage) []byte {
	b, err := m.Serialize()
	if err != nil {
		panic(fmt.Sprintf("encode BGP message: %v", err))
	}
	return b
}
