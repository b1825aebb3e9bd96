package routes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Kind says what an Event is about.
type Kind uint8

// The kinds of event.
const (
	// Route: our routes are no longer what they were, or what could not be put may succeed now. Call Dirty of their
	// table.
	Route Kind = iota + 1
	// Underlay: a route of somebody else came or went that Underlay may list.
	Underlay
	// Link: an interface appeared, changed or went.
	Link
	// Addr: an address appeared or went.
	Addr
	// Conf: forwarding, proxy ARP or another of the few settings that the kernel tells about changed, of an interface or
	// of "all" or "default".
	Conf
)

// String is the kind in one word.
func (k Kind) String() string {
	switch k {
	case Route:
		return "route"
	case Underlay:
		return "underlay"
	case Link:
		return "link"
	case Addr:
		return "addr"
	case Conf:
		return "conf"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Event is one change in the namespace, or "anything may have changed" when Interface is empty.
type Event struct {
	Kind      Kind
	Interface string // of Link, Addr and Conf
}

// groups are the notifications that Watch listens to.
var groups = [...]uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Watch tells changed about every change until ctx is done, then returns nil. changed runs on the calling goroutine
// and must be quick. What the Applier itself does causes no Route events, nor do routes of others.
//
// When more happens than the socket's buffer holds, the kernel drops messages and says so; then all kinds are reported
// without an interface. They are also reported once at the start, because of what happened before.
func (a *Applier) Watch(ctx context.Context, changed func(Event)) error {
	socket, err := a.subscribe()
	if err != nil {
		return err
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, socket.Close)() // ends Receive
	a.setLive(true)
	defer a.setLive(false)

	everything(changed)
	for {
		msgs, from, err := socket.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			a.opts.Logger.Info("kernel notifications were lost, looking at everything")
			a.setLive(true) // lists the interfaces anew
			everything(changed)
			continue
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("receive kernel notifications: %w", err)
		case from.Pid != nl.PidKernel:
			continue // any process may send to a netlink socket
		}
		for _, m := range msgs {
			for _, e := range a.interpret(m) {
				changed(e)
			}
		}
	}
}

func everything(changed func(Event)) {
	for _, k := range []Kind{Underlay, Link, Addr, Conf, Route} {
		changed(Event{Kind: k})
	}
}

func (a *Applier) subscribe() (*nl.NetlinkSocket, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handle == nil {
		return nil, errClosed
	}
	socket, err := nl.SubscribeAt(netns.NsHandle(a.ns.Fd()), netns.None(), unix.NETLINK_ROUTE, groups[:]...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to kernel notifications: %w", err)
	}
	if err := socket.SetReceiveBufferSize(a.opts.ReceiveBuffer, true); err != nil {
		socket.Close()
		return nil, fmt.Errorf("enlarge receive buffer: %w", err)
	}
	return socket, nil
}

// setLive says whether the link cache is fed from now on; in either case it is to be listed once more.
func (a *Applier) setLive(live bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.links.live, a.links.listed = live, false
}

// interpret is the events that one message of the kernel is worth.
func (a *Applier) interpret(m syscall.NetlinkMessage) []Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		var events []Event
		if a.routeMatters(m.Data, m.Header.Type == unix.RTM_DELROUTE) {
			events = append(events, Event{Kind: Route})
		}
		if a.underlayMatters(m.Data) {
			events = append(events, Event{Kind: Underlay})
		}
		return events
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return a.linkEvents(m.Data, m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return a.addrEvents(m.Data, m.Header.Type == unix.RTM_DELADDR)
	case unix.RTM_NEWNETCONF:
		return a.confEvents(m.Data)
	}
	return nil
}

// routeMatters reports whether a route message says something new about our routes. The kernel sends messages about
// our own writes as well; by then held has them, because mu is held over the write. Of two writes to one key in quick
// succession the first looks like a change by somebody else, which costs a listing and no more.
func (a *Applier) routeMatters(data []byte, deleted bool) bool {
	r, err := parseRoute(data)
	if err != nil {
		return true // whatever it was, look
	}
	k, ok := keyOf(r)
	if !ok || r.Flags&unix.RTM_F_CLONED != 0 || !slices.Contains(a.opts.Tables, r.Table) {
		return false
	}
	if _, occupied := a.occupied[k]; occupied {
		return true
	}
	held := a.held[k]
	if deleted {
		_, failing := a.failing[k]
		return len(held) > 0 || failing
	}
	names := a.links.hops(r)
	if r.Protocol != unix.RTPROT_KERNEL && slices.Contains(names, "") {
		return true // an interface that we do not know yet
	}
	if !a.ours(r, names) {
		return len(held) > 0 // it may have replaced ours, which is one message, not two
	}
	return len(held) != 1 || a.heldValue(k) != valueOf(r, names)
}

// linkEvents takes note of an interface. IPv4 routes go silently with the interface that goes or is set down, so that
// is a Route event; and so is an interface that comes up while a route waits for one.
func (a *Applier) linkEvents(data []byte, deleted bool) []Event {
	if len(data) < unix.SizeofIfInfomsg {
		return []Event{{Kind: Link}, {Kind: Route}}
	}
	info := nl.DeserializeIfInfomsg(data)
	if info.Family != unix.AF_UNSPEC {
		return nil // a bridge talks about its port
	}
	attrs, err := attributes(data[info.Len():])
	if err != nil {
		return []Event{{Kind: Link}, {Kind: Route}}
	}
	now := linkState{up: info.Flags&unix.IFF_UP != 0}
	for _, attr := range attrs {
		if attr.kind == unix.IFLA_IFNAME {
			now.name = unix.ByteSliceToString(attr.value)
		}
	}
	index := int(info.Index)
	name := now.name
	if deleted {
		now = linkState{}
	}
	before := a.links.set(index, now)
	events := []Event{{Kind: Link, Interface: name}}
	if before != now && (len(a.failing) > 0 || a.routesOn(index)) {
		events = append(events, Event{Kind: Route})
	}
	return events
}

// addrEvents: IPv4 routes go silently with their preferred source address, and with the last address of their interface;
// and a new address may be what a gateway or a source address waits for.
func (a *Applier) addrEvents(data []byte, deleted bool) []Event {
	if len(data) < unix.SizeofIfAddrmsg {
		return []Event{{Kind: Addr}, {Kind: Route}}
	}
	info := nl.DeserializeIfAddrmsg(data)
	attrs, err := attributes(data[info.Len():])
	if err != nil {
		return []Event{{Kind: Addr}, {Kind: Route}}
	}
	events := []Event{{Kind: Addr, Interface: a.links.name(int(info.Index))}}
	if !deleted {
		if len(a.failing) > 0 {
			events = append(events, Event{Kind: Route})
		}
		return events
	}
	if a.routesOn(int(info.Index)) {
		return append(events, Event{Kind: Route})
	}
	for _, attr := range attrs {
		local := attr.kind == unix.IFA_LOCAL || attr.kind == unix.IFA_ADDRESS
		if local && a.routesFrom(fromIP(attr.value)) {
			return append(events, Event{Kind: Route})
		}
	}
	return events
}

// From linux/netconf.h: the attribute that names the interface, and the two that stand for none or for all.
const (
	confIfindex = 1
	confAll     = -1
	confDefault = -2
)

// confEvents reads a message about settings: struct netconfmsg, four bytes with padding, then attributes.
func (a *Applier) confEvents(data []byte) []Event {
	const header = 4
	if len(data) < header {
		return []Event{{Kind: Conf}}
	}
	attrs, err := attributes(data[header:])
	if err != nil {
		return []Event{{Kind: Conf}}
	}
	for _, attr := range attrs {
		if attr.kind != confIfindex || len(attr.value) < 4 {
			continue
		}
		switch index := int32(nl.NativeEndian().Uint32(attr.value)); index {
		case confAll:
			return []Event{{Kind: Conf, Interface: "all"}}
		case confDefault:
			return []Event{{Kind: Conf, Interface: "default"}}
		default:
			return []Event{{Kind: Conf, Interface: a.links.name(int(index))}}
		}
	}
	return []Event{{Kind: Conf}}
}

func (a *Applier) routesOn(index int) bool {
	return a.anyHeld(func(r netlink.Route) bool {
		for _, nh := range r.MultiPath {
			if nh.LinkIndex == index {
				return true
			}
		}
		return r.LinkIndex == index
	})
}

func (a *Applier) routesFrom(src netip.Addr) bool {
	return a.anyHeld(func(r netlink.Route) bool { return len(r.Src) > 0 && fromIP(r.Src) == src })
}

func (a *Applier) anyHeld(is func(netlink.Route) bool) bool {
	for _, rs := range a.held {
		for _, r := range rs {
			if is(r) {
				return true
			}
		}
	}
	return false
}
