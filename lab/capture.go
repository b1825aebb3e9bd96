package lab

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/lab/capture"
)

// AllInterfaces is the name that means every interface of a member at once.
const AllInterfaces = "any"

const (
	// capturePoll bounds how long a capture takes to notice that it shall end.
	capturePoll = 100 * time.Millisecond
	// captureBuffer is what the kernel may hold back for a slow reader, in octets.
	captureBuffer = 16 << 20
)

// CaptureOptions say what to capture and where it goes.
type CaptureOptions struct {
	// Interface of the member; empty means eth0 on hosts and containers, and
	// AllInterfaces on routers and subnets.
	Interface string
	Filter    capture.Filter
	// Count ends the capture after so many packets; 0 means no end.
	Count int
	// Lines gets one line for each packet; nil means none.
	Lines io.Writer
	// File gets a pcap file; nil means none.
	File io.Writer
	// Notes gets the start and the summary, as on tcpdump's stderr; nil means none.
	Notes io.Writer
	// NoTime leaves the time out of the lines.
	NoTime bool
}

// Captured counts the packets of a capture.
type Captured struct {
	Packets  int    // that passed the filter
	Received uint32 // that the kernel had for the socket
	Dropped  uint32 // that the kernel could not keep for it
}

// Capture reads the packets of a member until ctx ends or there are enough;
// both are success. It needs no program and no library on the machine: the
// socket is opened inside the member's network namespace.
func (l *Lab) Capture(ctx context.Context, member string, o CaptureOptions) (Captured, error) {
	var got Captured
	if os.Geteuid() != 0 {
		return got, fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	if err := l.checkMember(member); err != nil {
		return got, err
	}
	if o.Interface == "" {
		o.Interface = l.captureDefault(member)
	}
	s, err := l.enter(member)
	if err != nil {
		return got, err
	}
	c := &capturer{o: o, space: s, buf: make([]byte, capture.SnapLen)}
	if err := s.do(func() error { return c.open(member) }); err != nil {
		return got, fmt.Errorf("capture in %s: %w", member, err)
	}
	defer unix.Close(c.fd)
	c.note("listening on %s in %s, link-type %s\n", o.Interface, member, c.link)
	if o.File != nil {
		if c.pcap, err = capture.NewWriter(o.File, c.link); err != nil {
			return got, err
		}
	}
	got, err = c.run(ctx)
	if err != nil {
		return got, fmt.Errorf("capture in %s: %w", member, err)
	}
	c.note("%s captured\n%s received by the socket\n%s dropped by the kernel\n",
		packets(got.Packets), packets(int(got.Received)), packets(int(got.Dropped)))
	return got, nil
}

func packets(n int) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

func (l *Lab) captureDefault(member string) string {
	_, err := l.host(member)
	container := slices.ContainsFunc(l.Containers(), func(c ContainerStatus) bool { return c.Name == member })
	if err == nil || container {
		return containerIf
	}
	return AllInterfaces
}

// capturer is one packet socket.
type capturer struct {
	o     CaptureOptions
	space *space
	fd    int
	link  capture.Link
	loop  bool // the loopback interface shows each packet twice
	names map[int]string
	pcap  *capture.Writer
	buf   []byte
}

func (c *capturer) note(format string, args ...any) {
	if c.o.Notes != nil {
		fmt.Fprintf(c.o.Notes, format, args...)
	}
}

// open makes the socket; it runs on the thread inside the member.
func (c *capturer) open(member string) error {
	links, err := interfaces()
	if err != nil {
		return err
	}
	c.names = map[int]string{}
	for _, l := range links {
		c.names[l.Attrs().Index] = l.Attrs().Name
	}
	index := 0
	c.link = capture.Cooked
	if c.o.Interface != AllInterfaces {
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == c.o.Interface })
		if i < 0 {
			return classified{ErrNotFound, fmt.Sprintf("%s has no interface %q, it has: %s, and %s for all",
				member, c.o.Interface, strings.Join(linkNames(links), ", "), AllInterfaces)}
		}
		a := links[i].Attrs()
		index, c.loop = a.Index, a.EncapType == "loopback"
		if c.link, err = linkType(a.EncapType); err != nil {
			return fmt.Errorf("interface %s: %w", a.Name, err)
		}
	}
	return c.socket(index)
}

func interfaces() ([]netlink.Link, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

func linkNames(links []netlink.Link) []string {
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// linkType says what the frames of a device begin with.
func linkType(encap string) (capture.Link, error) {
	switch encap {
	case "ether", "loopback":
		return capture.Ethernet, nil
	case "ipip", "tunnel6", "sit", "none", "void":
		return capture.Raw, nil
	default:
		return 0, fmt.Errorf("link type %q is not understood, try -i %s", encap, AllInterfaces)
	}
}

func (c *capturer) socket(index int) error {
	kind := unix.SOCK_RAW
	if c.link == capture.Cooked {
		kind = unix.SOCK_DGRAM
	}
	// Protocol 0 receives nothing until the socket is bound to its interface.
	fd, err := unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	c.fd = fd
	wait := unix.NsecToTimeval(int64(capturePoll))
	err = cmp.Or(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap16(unix.ETH_P_ALL), Ifindex: index}),
	)
	if err != nil {
		return fmt.Errorf("set up packet socket: %w", errors.Join(err, unix.Close(fd)))
	}
	return nil
}

// swap16 turns host into network byte order, and back.
func swap16(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

func (c *capturer) run(ctx context.Context) (Captured, error) {
	var got Captured
	for ctx.Err() == nil && (c.o.Count == 0 || got.Packets < c.o.Count) {
		p, from, err := c.read()
		if err != nil {
			return got, err
		}
		if p.Data == nil || !c.o.Filter.Match(c.link, p.Data) {
			continue
		}
		got.Packets++
		if err := c.emit(p, from); err != nil {
			return got, err
		}
	}
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return got, fmt.Errorf("read statistics: %w", err)
	}
	got.Received, got.Dropped = stats.Packets, stats.Drops
	return got, nil
}

// read returns the next packet; one without data when none came in time, or
// when it is not to be shown.
func (c *capturer) read() (capture.Packet, *unix.SockaddrLinklayer, error) {
	var none capture.Packet
	oob := make([]byte, 128)
	n, oobn, _, from, err := unix.Recvmsg(c.fd, c.buf, oob, 0)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return none, nil, nil
	case errors.Is(err, unix.ENETDOWN): // it may come up again
		return none, nil, nil
	case err != nil:
		return none, nil, fmt.Errorf("read packet: %w", err)
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || c.loop && ll.Pkttype == unix.PACKET_OUTGOING {
		return none, nil, nil
	}
	data := c.buf[:n]
	if c.link == capture.Cooked {
		if c.names[ll.Ifindex] == "lo" && ll.Pkttype == unix.PACKET_OUTGOING {
			return none, nil, nil
		}
		h := capture.CookedHeader{
			EtherType: swap16(ll.Protocol), Interface: uint32(ll.Ifindex), Hardware: ll.Hatype,
			Type: ll.Pkttype, Address: ll.Addr[:min(int(ll.Halen), len(ll.Addr))],
		}
		data = h.Frame(data)
	}
	return capture.Packet{Time: timestamp(oob[:oobn]), Data: data}, ll, nil
}

// timestamp is when the kernel saw the packet: a timespec of two 64-bit numbers.
func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// emit writes a packet to where it shall go.
func (c *capturer) emit(p capture.Packet, from *unix.SockaddrLinklayer) error {
	if c.pcap != nil {
		if err := c.pcap.Write(p); err != nil {
			return err
		}
	}
	if c.o.Lines == nil {
		return nil
	}
	var b strings.Builder
	if !c.o.NoTime {
		b.WriteString(p.Time.Format("15:04:05.000000 "))
	}
	if c.link == capture.Cooked {
		fmt.Fprintf(&b, "%-5s %-3s ", c.name(from.Ifindex), capture.Direction(c.link, p.Data))
	}
	b.WriteString(capture.Line(c.link, p.Data))
	b.WriteByte('\n')
	_, err := io.WriteString(c.o.Lines, b.String())
	return err
}

// name is the name of an interface, which may be younger than the capture.
func (c *capturer) name(index int) string {
	if name, ok := c.names[index]; ok {
		return name
	}
	_ = c.space.do(func() error {
		links, err := interfaces()
		for _, l := range links {
			c.names[l.Attrs().Index] = l.Attrs().Name
		}
		return err
	})
	if _, ok := c.names[index]; !ok {
		c.names[index] = fmt.Sprintf("if%d", index) // it has gone already
	}
	return c.names[index]
}
