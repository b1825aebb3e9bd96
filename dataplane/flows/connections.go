package flows

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/policy"
)

// Connection is one entry of the kernel's connection tracking.
type Connection struct {
	Packet  policy.Packet // the first packet, as it came
	Reply   Ends          // of the answers, before NAT is undone
	Packets uint64        // both ways; 0 where the kernel does not count (net.netfilter.nf_conntrack_acct)
	Bytes   uint64
	Replied bool // something came back

	flow conntrack.Flow
}

// Ends are the addresses and ports of a packet.
type Ends struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Tracker speaks to connection tracking in the network namespace of the thread
// that opened it. It is safe for use by one goroutine at a time.
type Tracker struct{ conn *conntrack.Conn }

// Open opens connection tracking.
func Open() (*Tracker, error) {
	conn, err := conntrack.Dial(&netlink.Config{})
	if err != nil {
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	return &Tracker{conn}, nil
}

// Close releases the socket.
func (t *Tracker) Close() error { return t.conn.Close() }

// List lists the connections.
func (t *Tracker) List() ([]Connection, error) {
	list, err := t.conn.Dump(nil)
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	out := make([]Connection, 0, len(list))
	for _, f := range list {
		out = append(out, connection(f))
	}
	return out, nil
}

// End removes connections from tracking: their next packet is judged anew. One
// that is gone is no error.
func (t *Tracker) End(list []Connection) error {
	var errs []error
	for _, c := range list {
		if err := t.conn.Delete(c.flow); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("end connection %s: %w", c.Packet, err))
		}
	}
	return errors.Join(errs...)
}

func connection(f conntrack.Flow) Connection {
	o, r := f.TupleOrig, f.TupleReply
	return Connection{
		Packet: policy.Packet{
			Src: o.IP.SourceAddress, Dst: o.IP.DestinationAddress, Protocol: o.Proto.Protocol,
			SrcPort: o.Proto.SourcePort, DstPort: o.Proto.DestinationPort, Type: o.Proto.ICMPType, Code: o.Proto.ICMPCode,
		},
		Reply:   Ends{r.IP.SourceAddress, r.IP.DestinationAddress, r.Proto.SourcePort, r.Proto.DestinationPort},
		Packets: f.CountersOrig.Packets + f.CountersReply.Packets, Bytes: f.CountersOrig.Bytes + f.CountersReply.Bytes,
		Replied: f.Status.SeenReply(), flow: f,
	}
}

// Event is a connection that began or ended.
type Event struct {
	Connection
	Ended bool
}

const (
	eventBuffer = 4 << 20 // bytes, of the socket
	eventQueue  = 1024
)

// FollowConnections calls got for every connection that begins or ends in the
// calling thread's network namespace, until ctx is done; then it returns nil.
// Those that come faster than got takes them are lost.
func FollowConnections(ctx context.Context, got func(Event)) error {
	conn, err := conntrack.Dial(&netlink.Config{})
	if err != nil {
		return fmt.Errorf("follow connections: %w", err)
	}
	defer conn.Close()
	if err := conn.SetReadBuffer(eventBuffer); err != nil {
		return fmt.Errorf("follow connections: enlarge buffer: %w", err)
	}
	// Else a burst that the buffer cannot hold would end the following (netlink(7), ENOBUFS).
	if err := conn.SetOption(netlink.NoENOBUFS, true); err != nil {
		return fmt.Errorf("follow connections: %w", err)
	}
	events := make(chan conntrack.Event, eventQueue)
	failed, err := conn.Listen(events, 1, []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTDestroy})
	if err != nil {
		return fmt.Errorf("follow connections: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("follow connections: %w", err)
		case e := <-events:
			if e.Flow == nil {
				continue
			}
			got(Event{Connection: connection(*e.Flow), Ended: e.Type == conntrack.EventDestroy})
		}
	}
}
