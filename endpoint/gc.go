package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/ipam"
)

// Attachment is one entry of the list that GC keeps.
type Attachment struct{ ContainerID, IfName string }

// GC detaches everything of a network on this host that is not in keep: endpoints, interfaces that no endpoint owns,
// and addresses that neither has. The runtime calls it when no Attach of that network is in progress (CNI
// specification 1.1); attachments in progress on other networks are safe.
func (m *Manager) GC(ctx context.Context, network string, keep []Attachment) error {
	kept := make(map[Attachment]bool, len(keep))
	for _, k := range keep {
		kept[k] = true
	}
	local, err := m.localEndpoints(ctx)
	if err != nil {
		return fmt.Errorf("gc of network %s: %w", network, err)
	}
	var errs []error
	for _, w := range local {
		if kept[Attachment{w.Spec.ContainerID, w.Spec.Endpoint}] {
			continue
		}
		ours, err := m.isOf(ctx, w, network)
		if err == nil && ours {
			m.Log.Info("gc: detach", "endpoint", w.Namespace+"/"+w.Name, "container", w.Spec.ContainerID)
			err = m.Detach(ctx, idOf(w, network))
		}
		errs = append(errs, err)
	}
	errs = append(errs, m.gcLinks(ctx, network, kept), m.gcAddresses(ctx, network, keep))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("gc of network %s: %w", network, err)
	}
	return nil
}

// isOf reports whether an endpoint belongs to a network: by our annotation, or, for one that Calico made, by its
// handle. Endpoints of Docker belong to none.
func (m *Manager) isOf(ctx context.Context, w *api.WorkloadEndpoint, network string) (bool, error) {
	if n := w.Annotations[AnnotationNetwork]; n != "" {
		return n == network, nil
	}
	if w.Spec.Orchestrator != OrchestratorCNI && w.Spec.Orchestrator != OrchestratorK8s {
		return false, nil
	}
	addrs, err := m.IPAM.Client().ByHandle(ctx, idOf(w, network).firstHandle())
	return len(addrs) > 0, err
}

// gcLinks detaches what only an interface with our alias is left of.
func (m *Manager) gcLinks(ctx context.Context, network string, kept map[Attachment]bool) error {
	links, err := m.ourLinks()
	if err != nil {
		return err
	}
	var errs []error
	for name, alias := range links {
		id, ok := parseAlias(alias)
		if !ok || id.Network != network || kept[Attachment{id.ContainerID, id.IfName}] {
			continue
		}
		errs = append(errs, m.gcLink(ctx, name, id))
	}
	return errors.Join(errs...)
}

// gcLink removes one interface. Its namespace and pod are not known, so the endpoint, if there was one, has been
// detached before; the address may be left.
func (m *Manager) gcLink(ctx context.Context, name string, id ID) error {
	unlock, err := m.locks.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if owner, err := m.owner(ctx, name, &api.WorkloadEndpoint{}); err != nil || owner != nil {
		return err // attached while we waited
	}
	m.Log.Info("gc: remove interface", "interface", name, "attachment", id.String())
	if err := m.host.removeIf(name, id.alias()); err != nil {
		return err
	}
	return m.release(ctx, id, nil)
}

// parseAlias is the inverse of ID.alias.
func parseAlias(alias string) (ID, bool) {
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return ID{}, false
	}
	return ID{Network: parts[0], ContainerID: parts[1], IfName: parts[2]}, true
}

// gcAddresses releases addresses of this host under the network's handles that no endpoint has. The order of reading
// matters: whoever attaches meanwhile writes the journal, assigns, stores the endpoint and leaves the journal, so an
// address seen first is in the journal or in an endpoint afterwards.
func (m *Manager) gcAddresses(ctx context.Context, network string, keep []Attachment) error {
	blocks, _, err := m.IPAM.Client().Blocks(ctx)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	handles, err := m.handlesInProgress()
	if err != nil {
		return err
	}
	for _, k := range keep {
		id := ID{Network: network, ContainerID: k.ContainerID, IfName: k.IfName}
		handles[id.handle()], handles[id.firstHandle()] = true, true
	}
	used, err := m.endpointAddresses(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range blocks {
		for _, a := range b.Allocations {
			// Another network's name may begin with this one's and a dot: the endpoints decide, not the handle alone.
			if a.Node != m.Node || !strings.HasPrefix(a.Handle, network+".") || handles[a.Handle] || used[a.Addr] {
				continue
			}
			m.Log.Info("gc: release address", "address", a.Addr, "handle", a.Handle)
			_, err := m.IPAM.ReleaseExactly(ctx, ipam.ReleaseOptions{Addr: a.Addr, Handle: a.Handle, Sequence: a.Sequence})
			if err != nil && !errors.Is(err, ipam.ErrStale) {
				errs = append(errs, fmt.Errorf("release address %s: %w", a.Addr, err))
			}
		}
	}
	return errors.Join(errs...)
}

// handlesInProgress are the handles of the attachments in the journal.
func (m *Manager) handlesInProgress() (map[string]bool, error) {
	names, err := m.journal.list()
	if err != nil {
		return nil, err
	}
	handles := map[string]bool{}
	for _, name := range names {
		if id, ok, err := m.journal.read(name); err == nil && ok {
			handles[id.handle()] = true
		}
	}
	return handles, nil
}

// endpointAddresses are the addresses of all endpoints of this node.
func (m *Manager) endpointAddresses(ctx context.Context) (map[netip.Addr]bool, error) {
	local, err := m.localEndpoints(ctx)
	if err != nil {
		return nil, err
	}
	used := map[netip.Addr]bool{}
	for _, w := range local {
		addrs, err := addresses(w)
		if err != nil {
			m.Log.Warn("endpoint's addresses cannot be read", "err", err)
		}
		for _, p := range addrs {
			used[p.Addr()] = true
		}
	}
	return used, nil
}
