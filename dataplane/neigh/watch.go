package neigh

import (
	"context"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/dataplane/notify"
)

// Watch calls changed whenever a neighbour or a forwarding entry of one of our devices has changed, by whomever, until
// ctx is done; then it returns nil. See notify.Follow for the rest. isOurs is asked with interface names.
func Watch(ctx context.Context, h *netlink.Handle, isOurs func(dev string) bool, changed func()) error {
	matters := func(m syscall.NetlinkMessage) bool {
		const header = 12 // struct ndmsg, whose second word is the interface's index
		if len(m.Data) < header {
			return true
		}
		// A device that is gone took its entries along, which the link's own notification tells.
		link, err := h.LinkByIndex(int(nl.NativeEndian().Uint32(m.Data[4:8])))
		return err == nil && isOurs(link.Attrs().Name)
	}
	return notify.Follow(ctx, unix.NETLINK_ROUTE, []uint{unix.RTNLGRP_NEIGH}, matters, changed)
}
