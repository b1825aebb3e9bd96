package ipip

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hook is a place where the kernel runs programs on the packets that an interface receives. A program is ours by its
// name.
type hook interface {
	name() string
	// ours are the programs of a direction that are attached to an interface; none if it does not exist.
	ours(ifindex int, d Direction) ([]ebpf.ProgramID, error)
	attach(ifindex int, d Direction, p *ebpf.Program, id ebpf.ProgramID) error
	detach(ifindex int, d Direction) error
}

// chooseHook prefers tcx: nobody else's `tc qdisc del` reaches it.
func chooseHook(o Options) hook {
	const lo = 1 // in every network namespace
	if _, err := link.QueryPrograms(link.QueryOptions{Target: lo, Attach: ebpf.AttachTCXIngress}); err != nil || o.Clsact {
		return clsact{o.Handle}
	}
	return tcx{}
}

// tcx knows the programs that this process has loaded, so that the usual look at them is one system call.
type tcx struct{ own [2]ebpf.ProgramID }

func (tcx) name() string { return "tcx" }

func (t tcx) ours(ifindex int, d Direction) ([]ebpf.ProgramID, error) {
	found, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []ebpf.ProgramID
	for _, a := range found.Programs {
		if a.ID == t.own[d] {
			out = append(out, a.ID)
			continue
		}
		name, err := programName(a.ID)
		if err != nil {
			return nil, err
		}
		if name == d.name() {
			out = append(out, a.ID)
		}
	}
	return out, nil
}

// programName is "" for a program that has just gone.
func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("look at program %d: %w", id, err)
	}
	return info.Name, nil
}

func (t tcx) attach(ifindex int, d Direction, p *ebpf.Program, id ebpf.ProgramID) error {
	have, err := t.ours(ifindex, d)
	if err != nil {
		return err
	}
	opts := link.RawAttachProgramOptions{Target: ifindex, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()}
	if i := slices.Index(have, id); i >= 0 {
		have = slices.Delete(have, i, i+1)
	} else if len(have) > 0 {
		old, err := ebpf.NewProgramFromID(have[0])
		if err != nil {
			return fmt.Errorf("open program %d, which is to be replaced: %w", have[0], err)
		}
		defer old.Close()
		opts.Anchor = link.ReplaceProgram(old)
		if err := link.RawAttachProgram(opts); err != nil {
			return err
		}
		have = have[1:]
	} else if err := link.RawAttachProgram(opts); err != nil {
		return err
	}
	return t.remove(ifindex, have)
}

func (t tcx) detach(ifindex int, d Direction) error {
	have, err := t.ours(ifindex, d)
	if err != nil {
		return err
	}
	return t.remove(ifindex, have)
}

func (tcx) remove(ifindex int, ids []ebpf.ProgramID) error {
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open program %d: %w", id, err)
		}
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: ifindex, Program: p, Attach: ebpf.AttachTCXIngress})
		_ = p.Close()
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("detach program %d: %w", id, err)
		}
	}
	return nil
}

// clsact is the hook of kernels before 6.6.
type clsact struct{ handle *netlink.Handle }

// Where our filters are: their own number under the first priority.
const (
	filterPriority = 1
	filterHandle   = 0x6d61
)

func (clsact) name() string { return "clsact" }

func (c clsact) filters(ifindex int, d Direction) ([]*netlink.BpfFilter, error) {
	l, err := c.handle.LinkByIndex(ifindex)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := c.handle.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil // no such qdisc
	}
	if err != nil {
		return nil, err
	}
	var out []*netlink.BpfFilter
	for _, f := range list {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == d.name() {
			out = append(out, b)
		}
	}
	return out, nil
}

func (c clsact) ours(ifindex int, d Direction) ([]ebpf.ProgramID, error) {
	list, err := c.filters(ifindex, d)
	var out []ebpf.ProgramID
	for _, f := range list {
		out = append(out, ebpf.ProgramID(f.Id))
	}
	return out, err
}

func (c clsact) attach(ifindex int, d Direction, p *ebpf.Program, id ebpf.ProgramID) error {
	have, err := c.filters(ifindex, d)
	if err != nil {
		return err
	}
	q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := c.handle.QdiscAdd(q); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc: %w", err)
	}
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: d.name(), DirectAction: true,
	}
	if len(have) != 1 || ebpf.ProgramID(have[0].Id) != id {
		if err := c.handle.FilterReplace(f); err != nil {
			return fmt.Errorf("add filter: %w", err)
		}
	}
	for _, old := range have {
		if old.Handle != filterHandle || old.Priority != filterPriority {
			if err := c.handle.FilterDel(old); err != nil {
				return fmt.Errorf("remove filter: %w", err)
			}
		}
	}
	return nil
}

// detach leaves the qdisc, which may be others' too.
func (c clsact) detach(ifindex int, d Direction) error {
	have, err := c.filters(ifindex, d)
	if err != nil {
		return err
	}
	for _, f := range have {
		if err := c.handle.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove filter: %w", err)
		}
	}
	return nil
}
