package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// Why our own messages: with google/nftables every rule asks to be echoed and is read back one by one, and a message
// that grows over 64 KiB loses its end without an error (docs/policy.md has the measurement). Its expressions are used.

const (
	// socketBuffer in bytes: a batch is handed to the kernel in one write, which needs as much room as it is long.
	socketBuffer = 64 << 20
	// maxAttr bounds an attribute: its length is a 16-bit number of bytes.
	maxAttr = 60 << 10
	// patience is how long the kernel may take for one batch. It is bounded so that a lost answer ends in an error.
	patience = 30 * time.Second

	sizeHeader = unix.SizeofNlMsghdr
	sizeFamily = 4 // struct nfgenmsg
)

// socket is one netlink socket. It is used by one goroutine at a time.
type socket struct {
	fd     int
	family uint8  // of what is listed
	port   uint32 // our address, which the kernel puts into the notifications of our changes
	seq    uint32
	buf    []byte
}

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s := &socket{fd: fd, family: unix.NFPROTO_INET, seq: uint32(time.Now().Unix()), buf: make([]byte, 256<<10)}
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		// An error then repeats the header of the message it is about, not the message.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	)
	if err == nil {
		var at unix.Sockaddr
		if at, err = unix.Getsockname(fd); err == nil {
			s.port = at.(*unix.SockaddrNetlink).Pid
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netlink: %w", err)
	}
	return s, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// receive returns the messages of one read that are answers to requests of ours from seq on. One that came after its
// request had been given up is not.
func (s *socket) receive(from uint32) ([]message, error) {
	for {
		n, peer, err := unix.Recvfrom(s.fd, s.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("receive from netlink: %w", err)
		}
		if p, ok := peer.(*unix.SockaddrNetlink); !ok || p.Pid != 0 {
			continue // any process may send to a netlink socket
		}
		msgs := split(s.buf[:n])
		keep := msgs[:0]
		for _, m := range msgs {
			if int32(m.seq-from) >= 0 {
				keep = append(keep, m)
			}
		}
		if len(keep) > 0 {
			return keep, nil
		}
	}
}

// message is one netlink message; data points into the socket's buffer and holds until the next read.
type message struct {
	typ, flags uint16
	seq        uint32
	data       []byte
}

// split cuts what was read into messages. What is malformed ends it: the kernel does not send such.
func split(b []byte) []message {
	var out []message
	for len(b) >= sizeHeader {
		n := int(binary.NativeEndian.Uint32(b))
		if n < sizeHeader || n > len(b) {
			break
		}
		out = append(out, message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[sizeHeader:n]})
		b = b[min(len(b), (n+3)&^3):]
	}
	return out
}

// errno is the error that a message carries: an NLMSG_ERROR, or an NLMSG_DONE with one.
func (m message) errno() error {
	if (m.typ == unix.NLMSG_ERROR || m.typ == unix.NLMSG_DONE) && len(m.data) >= 4 {
		if n := int32(binary.NativeEndian.Uint32(m.data)); n < 0 {
			return unix.Errno(-n)
		}
	}
	return nil
}

// errInterrupted is the error of a listing during which something changed.
var errInterrupted = errors.New("changed while it was listed")

// dumpAttempts bounds how often a listing is repeated that was interrupted by changes.
const dumpAttempts = 20

// dump asks for a list and calls each for every message of the answer, with the attributes behind struct nfgenmsg.
// Where something changed meanwhile, the list is asked for again after reset was called.
func (s *socket) dump(typ uint16, attrs []byte, reset func(), each func(attributes)) error {
	for range dumpAttempts {
		err := s.dumpOnce(typ, attrs, each)
		if !errors.Is(err, errInterrupted) {
			return err
		}
		reset()
	}
	return errInterrupted
}

func (s *socket) dumpOnce(typ uint16, attrs []byte, each func(attributes)) error {
	s.seq++
	seq := s.seq
	req := appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, seq, s.family, 0)
	req = append(req, attrs...)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	if err := unix.Sendto(s.fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	interrupted := false
	for {
		msgs, err := s.receive(seq)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			if err := m.errno(); err != nil {
				if errors.Is(err, unix.EINTR) {
					return errInterrupted
				}
				return err
			}
			if m.typ == unix.NLMSG_DONE {
				if interrupted {
					return errInterrupted
				}
				return nil
			}
			if m.typ>>8 == unix.NFNL_SUBSYS_NFTABLES && len(m.data) >= sizeFamily {
				each(m.data[sizeFamily:])
			}
		}
	}
}

// attributes is a list of netlink attributes.
type attributes []byte

// each calls fn for every attribute. Attributes that claim more than there is end it.
func (a attributes) each(fn func(typ uint16, data []byte)) {
	for len(a) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(a))
		if n < unix.SizeofNlAttr || n > len(a) {
			return
		}
		fn(binary.NativeEndian.Uint16(a[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a[unix.SizeofNlAttr:n])
		a = a[min(len(a), (n+3)&^3):]
	}
}

// get is the attribute of a type, or nil.
func (a attributes) get(typ uint16) (found []byte) {
	a.each(func(t uint16, data []byte) {
		if t == typ && found == nil {
			found = data
		}
	})
	return found
}

// text is a string attribute without its terminating zero.
func (a attributes) text(typ uint16) string {
	b := a.get(typ)
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return string(b)
}

// number is a 32-bit or 64-bit attribute in network byte order; 0 where there is none.
func (a attributes) number(typ uint16) uint64 {
	switch b := a.get(typ); len(b) {
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func appendMessage(b []byte, typ, flags uint16, seq uint32, family uint8, resource uint16) []byte {
	b = binary.NativeEndian.AppendUint32(b, 0) // length, filled in at the end
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return pad(b)
}

func appendText(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(append(b, s...), 0)
	return pad(b)
}

func appendNumber(b []byte, typ uint16, n uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+4)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, n)
}

func pad(b []byte) []byte {
	for len(b)&3 != 0 {
		b = append(b, 0)
	}
	return b
}

// open an attribute that holds others; closeNested fills in its length.
func openNested(b []byte, typ uint16) ([]byte, int) {
	at := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, typ|unix.NLA_F_NESTED), at
}

func closeNested(b []byte, at int) []byte {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}

// batch is one transaction in the making.
type batch struct {
	buf   []byte
	first uint32 // sequence number of its first message
	seq   uint32
	start int              // of the message in the making
	about []desired.NFTKey // what each message is about
}

func (s *socket) batch() *batch {
	b := &batch{first: s.seq + 1, seq: s.seq + 1}
	b.buf = appendMessage(b.buf, unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, b.first, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.finish()
	return b
}

// message begins a message about an object.
func (b *batch) message(typ, flags uint16, about desired.NFTKey) {
	b.seq++
	b.start = len(b.buf)
	b.about = append(b.about, about)
	b.buf = appendMessage(b.buf, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|flags, b.seq, unix.NFPROTO_INET, 0)
}

// finish ends the message begun last.
func (b *batch) finish() {
	binary.NativeEndian.PutUint32(b.buf[b.start:], uint32(len(b.buf)-b.start))
}

// maxRefusals bounds how many errors of one batch are remembered.
const maxRefusals = 1000

// refusal is the kernel's error about one message of a batch, which then changed nothing at all.
type refusal struct {
	about  desired.NFTKey // zero: the batch as a whole
	err    error
	others []*refusal // of the same batch
}

func (r *refusal) Error() string {
	if r.about.Name == "" {
		return "change nftables: " + r.err.Error()
	}
	return fmt.Sprintf("change nftables: %s: %v", r.about, r.err)
}

func (r *refusal) Unwrap() error { return r.err }

// commit sends the batch and waits until the kernel has done all of it, or nothing.
func (s *socket) commit(b *batch) error {
	if len(b.about) == 0 {
		return nil
	}
	// Only the last message asks to be acknowledged: errors are reported unasked, and an answer for each of 100 000
	// messages would fill the socket.
	flags := binary.NativeEndian.Uint16(b.buf[b.start+6:])
	binary.NativeEndian.PutUint16(b.buf[b.start+6:], flags|unix.NLM_F_ACK)
	last := b.seq
	b.start = len(b.buf)
	s.seq = last + 1
	b.buf = appendMessage(b.buf, unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, s.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.finish()
	if err := unix.Sendto(s.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return &refusal{err: fmt.Errorf("send %d bytes: %w", len(b.buf), err)}
	}
	var first *refusal
	result := func() error {
		if first == nil {
			return nil
		}
		return first
	}
	for {
		msgs, err := s.receive(b.first)
		if err != nil {
			return errors.Join(result(), &refusal{err: err})
		}
		for _, m := range msgs {
			if m.typ != unix.NLMSG_ERROR {
				continue
			}
			if err := m.errno(); err != nil {
				r := &refusal{err: err}
				if i := int(m.seq - b.first - 1); i >= 0 && i < len(b.about) {
					r.about = b.about[i]
				}
				if first == nil {
					first = r
				} else if len(first.others) < maxRefusals {
					first.others = append(first.others, r)
				}
			}
			if m.seq == last || m.seq == b.first {
				return result() // the answer about the beginning is about the batch as a whole
			}
		}
	}
}
