package flows

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/policy"
)

// Report is one packet that the packet filter reported.
type Report struct {
	Time    time.Time
	Label   string // of the rule, as it stands in the rule's log statement
	Packet  policy.Packet
	In, Out string // interface names; empty where the packet has none
}

const (
	reportBuffer = 4 << 20 // bytes, of the socket: some ten thousand reports
	reportCopy   = 128     // bytes of each packet, enough for its headers
)

// FollowReports calls got for every packet that is reported to an NFLOG group of
// the calling thread's network namespace, until ctx is done; then it returns
// nil. Reports that come faster than got takes them are lost; lost is called when
// that happened; nameOf gives an interface's name by its index, or an empty one.
// While nobody follows a group the kernel makes no report at all
// (net/netfilter/nfnetlink_log.c, nfulnl_log_packet: no instance of the group).
func FollowReports(ctx context.Context, group uint16, nameOf func(index int) string, got func(Report), lost func()) error {
	log, err := nflog.Open(&nflog.Config{Group: group, Copymode: nflog.CopyPacket, Bufsize: reportCopy})
	if err != nil {
		return fmt.Errorf("follow reports of the packet filter: %w", err)
	}
	defer log.Close()
	if err := log.Con.SetReadBuffer(reportBuffer); err != nil {
		return fmt.Errorf("follow reports of the packet filter: enlarge buffer: %w", err)
	}
	names := interfaceNames{nameOf: nameOf, known: map[uint32]string{}}
	hook := func(a nflog.Attribute) int {
		if r, ok := report(a, names); ok {
			got(r)
		}
		return 0
	}
	failed := make(chan error, 1)
	onError := func(err error) int {
		if errors.Is(err, unix.ENOBUFS) {
			lost()
			return 0
		}
		var op *netlink.OpError
		if errors.As(err, &op) && op.Timeout() {
			return 0
		}
		select {
		case failed <- err:
		default:
		}
		return 1
	}
	if err := log.RegisterWithErrorFunc(ctx, hook, onError); err != nil {
		return fmt.Errorf("follow reports of the packet filter: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("follow reports of the packet filter: %w", err)
	}
}

func report(a nflog.Attribute, names interfaceNames) (Report, bool) {
	if a.Payload == nil {
		return Report{}, false
	}
	p, err := ParsePacket(*a.Payload)
	if err != nil {
		return Report{}, false // no IP packet: not from our table
	}
	r := Report{Time: time.Now(), Packet: p}
	if a.Timestamp != nil {
		r.Time = *a.Timestamp
	}
	if a.Prefix != nil {
		r.Label = *a.Prefix
	}
	r.In, r.Out = names.of(a.InDev), names.of(a.OutDev)
	return r, true
}

// interfaceNames remembers names by index for a short while: interfaces come and
// go, and indexes are not reused soon.
type interfaceNames struct {
	nameOf func(int) string
	known  map[uint32]string
}

const maxNames = 4096

func (n interfaceNames) of(index *uint32) string {
	if index == nil || *index == 0 {
		return ""
	}
	if name, known := n.known[*index]; known {
		return name
	}
	if len(n.known) >= maxNames {
		clear(n.known)
	}
	name := n.nameOf(int(*index))
	n.known[*index] = name
	return name
}
