// Package notify listens to the kernel's notifications of one netlink family.
package notify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// buffer is the size in bytes of the socket's receive buffer: some thousand messages.
const buffer = 1 << 20

// Follow calls changed after every burst of messages of which at least one matters, until ctx is done; then it returns
// nil. It calls it once at the start, because of what happened before, and when the kernel says that messages were lost.
// It follows the network namespace that the calling thread is in at the time of the call.
func Follow(ctx context.Context, protocol int, groups []uint, matters func(syscall.NetlinkMessage) bool, changed func()) error {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer here.Close()
	socket, err := nl.SubscribeAt(netns.NsHandle(here.Fd()), netns.None(), protocol, groups...)
	if err != nil {
		return fmt.Errorf("subscribe to kernel notifications: %w", err)
	}
	defer socket.Close()
	if err := socket.SetReceiveBufferSize(buffer, true); err != nil {
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
			return fmt.Errorf("receive kernel notifications: %w", err)
		case from.Pid != nl.PidKernel:
			continue // any process may send to a netlink socket
		}
		for _, m := range msgs {
			if matters(m) {
				changed()
				break
			}
		}
	}
}
