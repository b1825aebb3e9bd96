// Package neigh writes the two tables that say who is behind a tunnel device: permanent neighbours (address to MAC) and,
// for VXLAN, the forwarding table (MAC to host). Both appliers are meant for a reconcile.Table.
//
// On the devices given, every entry of these kinds is ours, whatever wrote it; all other devices are left alone.
package neigh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

// maxDumps bounds how often a listing is repeated that the kernel says was interrupted by a change.
const maxDumps = 5

// Neighbours is the permanent neighbours of some devices. It is safe for use by one goroutine at a time.
type Neighbours struct {
	handle  *netlink.Handle
	devices []string
}

// FDB is the forwarding table of some VXLAN devices. It is safe for use by one goroutine at a time.
type FDB struct {
	handle  *netlink.Handle
	devices []string
}

var (
	_ reconcile.Applier[desired.NeighbourKey, string] = (*Neighbours)(nil)
	_ reconcile.Applier[desired.FDBKey, netip.Addr]   = (*FDB)(nil)
)

// NewNeighbours works through a handle, which the caller closes.
func NewNeighbours(handle *netlink.Handle, devices ...string) *Neighbours {
	return &Neighbours{handle: handle, devices: devices}
}

// NewFDB works through a handle, which the caller closes.
func NewFDB(handle *netlink.Handle, devices ...string) *FDB {
	return &FDB{handle: handle, devices: devices}
}

// Dump lists the permanent neighbours.
func (n *Neighbours) Dump(ctx context.Context) (map[desired.NeighbourKey]string, error) {
	out := map[desired.NeighbourKey]string{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		err := each(ctx, n.handle, n.devices, family, func(dev string, e netlink.Neigh) {
			addr, ok := netip.AddrFromSlice(e.IP)
			if ok && e.State&netlink.NUD_PERMANENT != 0 && !addr.IsMulticast() {
				out[desired.NeighbourKey{Dev: dev, Addr: addr.Unmap()}] = e.HardwareAddr.String()
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
	}
	return out, nil
}

// Put writes a permanent neighbour.
func (n *Neighbours) Put(_ context.Context, k desired.NeighbourKey, mac string) error {
	e, err := entry(n.handle, k.Dev, mac)
	if err != nil {
		return err
	}
	e.State, e.IP = netlink.NUD_PERMANENT, k.Addr.AsSlice()
	if err := n.handle.NeighSet(e); err != nil {
		return fmt.Errorf("write neighbour: %w", err)
	}
	return nil
}

// Delete removes a neighbour. One that is gone is no error.
func (n *Neighbours) Delete(_ context.Context, k desired.NeighbourKey) error {
	e, err := entry(n.handle, k.Dev, "")
	if err != nil {
		return gone(err)
	}
	e.IP = k.Addr.AsSlice()
	return gone(n.handle.NeighDel(e))
}

// Dump lists the forwarding table. An entry without a host, which the kernel makes for the default destination, is
// nobody's.
func (f *FDB) Dump(ctx context.Context) (map[desired.FDBKey]netip.Addr, error) {
	out := map[desired.FDBKey]netip.Addr{}
	err := each(ctx, f.handle, f.devices, unix.AF_BRIDGE, func(dev string, e netlink.Neigh) {
		addr, ok := netip.AddrFromSlice(e.IP)
		k := desired.FDBKey{Dev: dev, MAC: e.HardwareAddr.String()}
		switch _, twice := out[k]; {
		case !ok || e.Flags&netlink.NTF_SELF == 0:
		case twice || e.State&netlink.NUD_PERMANENT == 0:
			out[k] = netip.Addr{} // several hosts, or one that would age: not what Put writes
		default:
			out[k] = addr.Unmap()
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list forwarding table: %w", err)
	}
	return out, nil
}

// Put writes an entry, replacing the host of one that is there.
func (f *FDB) Put(_ context.Context, k desired.FDBKey, host netip.Addr) error {
	e, err := entry(f.handle, k.Dev, k.MAC)
	if err != nil {
		return err
	}
	e.Family, e.State, e.Flags, e.IP = unix.AF_BRIDGE, netlink.NUD_PERMANENT, netlink.NTF_SELF, host.AsSlice()
	if err := f.handle.NeighSet(e); err != nil {
		return fmt.Errorf("write forwarding entry: %w", err)
	}
	return nil
}

// Delete removes an entry with all its hosts. One that is gone is no error.
func (f *FDB) Delete(ctx context.Context, k desired.FDBKey) error {
	var found []netip.Addr
	err := each(ctx, f.handle, []string{k.Dev}, unix.AF_BRIDGE, func(_ string, e netlink.Neigh) {
		if addr, ok := netip.AddrFromSlice(e.IP); ok && e.HardwareAddr.String() == k.MAC {
			found = append(found, addr.Unmap())
		}
	})
	if err != nil {
		return fmt.Errorf("look for forwarding entry: %w", err)
	}
	for _, addr := range found {
		e, err := entry(f.handle, k.Dev, k.MAC)
		if err != nil {
			return gone(err)
		}
		e.Family, e.Flags, e.IP = unix.AF_BRIDGE, netlink.NTF_SELF, addr.AsSlice()
		if err := gone(f.handle.NeighDel(e)); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for every entry of the devices that exist.
func each(ctx context.Context, h *netlink.Handle, devices []string, family int, f func(dev string, e netlink.Neigh)) error {
	for _, dev := range devices {
		if err := ctx.Err(); err != nil {
			return err
		}
		link, err := h.LinkByName(dev)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find interface %s: %w", dev, err)
		}
		var list []netlink.Neigh
		for range maxDumps {
			if list, err = h.NeighList(link.Attrs().Index, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("of %s: %w", dev, err)
		}
		for _, e := range list {
			if e.LinkIndex == link.Attrs().Index {
				f(dev, e)
			}
		}
	}
	return nil
}

// entry is an entry of a device with a MAC, which may be empty.
func entry(h *netlink.Handle, dev, mac string) (*netlink.Neigh, error) {
	link, err := h.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", dev, err)
	}
	e := &netlink.Neigh{LinkIndex: link.Attrs().Index}
	if mac != "" {
		if e.HardwareAddr, err = net.ParseMAC(mac); err != nil {
			return nil, fmt.Errorf("MAC %q: %w", mac, err)
		}
	}
	return e, nil
}

// gone forgives that there is nothing to delete any more.
func gone(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
