package neigh

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// watchBuffer is the size in bytes of the buffer for notifications.
const watchBuffer = 1 << 20

// Watch calls changed whenever a neighbour or a forwarding entry of one of the devices has changed, by whomever, until
// ctx is done; then it returns nil. It calls it once at the start, and when notifications were lost. It follows the
// network namespace of the calling thread at the time of the call; isOurs is asked with interface names.
func Watch(ctx context.Context, h *netlink.Handle, isOurs func(dev string) bool, changed func()) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer here.Close()
	socket, err := nl.SubscribeAt(netns.NsHandle(here.Fd()), netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("subscribe to neighbour notifications: %w", err)
	}
	defer socket.Close()
	if err := socket.SetReceiveBufferSize(watchBuffer, true); err != nil {
		return fmt.Errorf("enlarge receive buffer: %w", err)
	}
	defer context.AfterFunc(ctx, socket.Close)() // ends Receive
	changed()
	for {
		msgs, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
			continue
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("receive neighbour notifications: %w", err)
		case from.Pid != nl.PidKernel:
			continue // any process may send to a netlink socket
		}
		for _, m := range msgs {
			if matters(h, m.Data, isOurs) {
				changed()
				break
			}
		}
	}
}

// matters looks at struct ndmsg, whose interface index is its second word. A device that is gone took its entries along,
// which the link's own notification tells.
func matters(h *netlink.Handle, data []byte, isOurs func(string) bool) bool {
	const header = 12
	if len(data) < header {
		return true
	}
	link, err := h.LinkByIndex(int(nl.NativeEndian().Uint32(data[4:8])))
	return err == nil && isOurs(link.Attrs().Name)
}
