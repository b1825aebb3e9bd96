package capture

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// SnapLen is the most octets of a packet that a capture keeps; no packet that
// Linux hands out is longer.
const SnapLen = 262144

// pcapMagic marks a classic pcap file with microseconds in the writer's byte
// order (https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html §4).
const pcapMagic = 0xa1b2c3d4

// Writer writes a classic pcap file, version 2.4, little-endian.
type Writer struct{ out io.Writer }

// NewWriter writes the file header to out.
func NewWriter(out io.Writer, link Link) (*Writer, error) {
	h := make([]byte, 0, 24)
	h = binary.LittleEndian.AppendUint32(h, pcapMagic)
	h = binary.LittleEndian.AppendUint16(h, 2)
	h = binary.LittleEndian.AppendUint16(h, 4)
	h = binary.LittleEndian.AppendUint64(h, 0) // time zone and accuracy, both unused
	h = binary.LittleEndian.AppendUint32(h, SnapLen)
	h = binary.LittleEndian.AppendUint32(h, uint32(link))
	if _, err := out.Write(h); err != nil {
		return nil, fmt.Errorf("write pcap header: %w", err)
	}
	return &Writer{out}, nil
}

// Write appends one packet with a single write, so that a reader of a growing
// file never sees half a record for longer than that takes.
func (w *Writer) Write(p Packet) error {
	data := p.Data[:min(len(p.Data), SnapLen)]
	at := p.Time.Truncate(time.Microsecond)
	r := make([]byte, 0, 16+len(data))
	r = binary.LittleEndian.AppendUint32(r, uint32(at.Unix()))
	r = binary.LittleEndian.AppendUint32(r, uint32(at.Nanosecond()/1000))
	r = binary.LittleEndian.AppendUint32(r, uint32(len(data)))
	r = binary.LittleEndian.AppendUint32(r, uint32(len(p.Data)))
	if _, err := w.out.Write(append(r, data...)); err != nil {
		return fmt.Errorf("write packet to pcap: %w", err)
	}
	return nil
}
