// Package notify listens to the kernel's notifications of one netlink family.
package notify

import (
	"context"
	"encoding/binary"
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
	return FollowOthers(ctx, protocol, groups, 0, matters, changed)
}

// FollowOthers is Follow without the messages about changes that were made through the socket with the netlink address
// own, if that is not 0. The kernel does not even queue them, so that a great change of one's own loses nothing.
func FollowOthers(ctx context.Context, protocol int, groups []uint, own uint32, matters func(syscall.NetlinkMessage) bool, changed func()) error {
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
	if own != 0 {
		if err := ignore(socket.GetFd(), own); err != nil {
			return fmt.Errorf("ignore own changes: %w", err)
		}
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

// ignore attaches a filter that drops what came of the changes made by another netlink socket: the notification carries
// that socket's address in its header, and all messages of one buffer come of one change.
func ignore(fd int, port uint32) error {
	const (
		pid      = 12 // offset of nlmsg_pid
		everyone = 1 << 31
	)
	// The filter reads numbers in network byte order; the header has this machine's.
	big := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port))
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: pid},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: big, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: everyone},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}
