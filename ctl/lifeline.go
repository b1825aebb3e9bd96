package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/resource"
)

// errCut is what a write is refused with that would cut a lifeline.
var errCut = errors.New("would cut what this network is operated by")

// lifeline is a connection without which nobody could take the change back.
type lifeline struct {
	what     string // "your session from 192.0.2.7"
	from, to explain.Party
	packet   policy.Packet
}

// checkLifelines refuses a change of policy after which the operator's own
// session or a host's way to the datastore would be denied that is not denied
// now. It asks the calculation of the hosts, on a copy of the datastore in which
// the change has been made.
func (a *app) checkLifelines(ctx context.Context, store datastore.Store, items []item, v verb) error {
	if !touchesHosts(items) {
		return nil
	}
	before, err := loadView(ctx, store)
	if err != nil {
		return fmt.Errorf("read the datastore: %w", err)
	}
	trial := newOverlay(store)
	client := resource.New(trial, nil)
	for _, i := range items {
		if v.do(ctx, client, i.copy()) != nil {
			return nil // the real thing will say what is wrong
		}
	}
	after, err := loadView(ctx, trial)
	if err != nil {
		return fmt.Errorf("read the datastore: %w", err)
	}
	var cut []string
	for _, l := range a.lifelines(after) {
		if now, then := before.judge(l), after.judge(l); now == nil && then != nil {
			cut = append(cut, fmt.Sprintf("%s: %v", l.what, then))
		}
	}
	if len(cut) == 0 {
		return nil
	}
	return exit.New(exit.Conflict, "give --force if this is wanted, or --confirm 60s to try it", fmt.Errorf("%w: %s", errCut, strings.Join(cut, "; ")))
}

// touchesHosts reports whether the change can concern host endpoints.
func touchesHosts(items []item) bool {
	for _, i := range items {
		switch i.kind.Name {
		case "GlobalNetworkPolicy", "HostEndpoint", "Tier", "Profile", "GlobalNetworkSet", "FelixConfiguration":
			return true
		}
	}
	return false
}

// copy is the item with an object of its own: verbs fill in what the store says.
func (i item) copy() item {
	o, err := copyObject(i.kind, i.object)
	if err != nil {
		return i
	}
	i.object = o
	return i
}

// judge returns why a lifeline is denied, nil if it is not. What cannot be
// judged is no reason to refuse.
func (v *view) judge(l lifeline) error {
	n := v.network(l.from.Node, l.to.Node)
	answer, err := explain.Explain(n, l.from, l.to, l.packet)
	if err != nil || answer.Allowed {
		return nil
	}
	d := answer.Decision()
	if d.Trace == nil {
		return errors.New(d.Note)
	}
	return errors.New(explain.Because(n.Hosts[d.Node], d.Trace))
}

// lifelines are the operator's session, if it is one over SSH, and every host's
// connection to the datastore.
func (a *app) lifelines(v *view) []lifeline {
	var out []lifeline
	add := func(what string, from, to explain.Party, port uint16) {
		if from.Node == to.Node && from.Kind == to.Kind || from.Addr.Is4() != to.Addr.Is4() {
			return
		}
		p := policy.Packet{Src: from.Addr, Dst: to.Addr, Protocol: policy.ProtoTCP, SrcPort: 50000, DstPort: port}
		out = append(out, lifeline{what, from, to, p})
	}
	// CLIENT PORT SERVER PORT, set by sshd for what it starts.
	if w := strings.Fields(a.Environ("SSH_CONNECTION")); len(w) == 4 {
		client, err1 := netip.ParseAddr(w[0])
		server, err2 := netip.ParseAddr(w[2])
		port, err3 := strconv.ParseUint(w[3], 10, 16)
		if errors.Join(err1, err2, err3) == nil {
			add("your session from "+w[0], v.owner(client), v.owner(server), uint16(port))
		}
	}
	for _, at := range a.datastoreAddrs() {
		for _, n := range v.nodes {
			for _, host := range hostParties(n) {
				add(fmt.Sprintf("the way of host %s to the datastore at %s", n.Name, at), host, v.owner(at.Addr()), at.Port())
			}
		}
	}
	return out
}

// datastoreAddrs are the addresses of etcd that this command uses.
func (a *app) datastoreAddrs() []netip.AddrPort {
	c, _, err := config.Load(a.configPath, a.Environ)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, text := range c.EtcdEndpoints {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		host, port, err := net.SplitHostPort(u.Host)
		if err != nil {
			continue
		}
		if at, err := netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil && !at.Addr().IsLoopback() {
			out = append(out, at)
		}
	}
	return out
}
