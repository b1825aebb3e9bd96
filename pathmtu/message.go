package pathmtu

import (
	"bytes"
	"encoding/binary"
)

// A message is 20 bytes, then padding: "mnkp", version, type, the size of the
// question's IP packet (2), its number (8), and 4 reserved bytes.
const (
	messageSize = 20
	version     = 1
)

func magic() []byte { return []byte("mnkp") }

// kind says what a message is.
type kind byte

const (
	question kind = 1
	answer   kind = 2
)

// message is one probe, or the answer to it.
type message struct {
	kind kind
	size int    // bytes of the question's IP packet
	id   uint64 // chosen by who asks
}

// encode appends the message, padded to n bytes.
func (m message) encode(n int) []byte {
	b := make([]byte, max(n, messageSize))
	copy(b, magic())
	b[4], b[5] = version, byte(m.kind)
	binary.BigEndian.PutUint16(b[6:], uint16(m.size))
	binary.BigEndian.PutUint64(b[8:], m.id)
	return b
}

// decode reads a message; ok is false for anything else.
func decode(b []byte) (m message, ok bool) {
	if len(b) < messageSize || !bytes.HasPrefix(b, magic()) || b[4] != version {
		return m, false
	}
	m = message{kind(b[5]), int(binary.BigEndian.Uint16(b[6:])), binary.BigEndian.Uint64(b[8:])}
	return m, m.kind == question || m.kind == answer
}
