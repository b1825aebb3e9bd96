package endpoint

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint/pending"
)

// Detach removes an attachment: the pair, the routes, the endpoint, the addresses. What is not there is no error. When
// the datastore does not answer, the container's side is removed now and the rest later (Run), and Detach succeeds.
func (m *Manager) Detach(ctx context.Context, id ID) error {
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	defer unlock()
	err = m.undo(ctx, id)
	if err == nil {
		return pending.Remove(m.pending, id.record())
	}
	if errors.Is(err, datastore.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		m.Log.Warn("deletion is kept for later", "attachment", id.String(), "err", err)
		err = errors.Join(m.host.removeIf(id.hostName(m.Prefix), id.alias()), pending.Write(m.pending, id.record()))
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	return nil
}

// detach removes all that belongs to id, in an order in which every prefix leaves a state that the same call can go on
// from: the container stops first, and its address is free for others only when no route leads to it any more.
func (m *Manager) detach(ctx context.Context, id ID) error {
	own := id.endpoint(m.Node, id.hostName(m.Prefix))
	if own.Name == "" {
		return fmt.Errorf("%w: the container's ID, pod and interface give no endpoint name", ErrInvalid)
	}
	stored, err := m.weps.Get(ctx, own.Namespace, own.Name)
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	if err == nil && stored.Spec.ContainerID == id.ContainerID {
		own = stored
	} else if err == nil {
		stored = nil // a pod's newer sandbox has taken the endpoint over: only the old address is left to give back
		return m.release(ctx, id, stored)
	}
	if err := m.removePair(ctx, id, own); err != nil {
		return err
	}
	m.Step(StepPairGone)
	if err := m.Sink.Remove(ctx, own.Namespace, own.Name); err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	m.Step(StepRoutesGone)
	if err := m.deleteEndpoint(ctx, stored); err != nil {
		return err
	}
	m.Step(StepEndpointGone)
	if err := m.release(ctx, id, stored); err != nil {
		return err
	}
	m.Step(StepAddressGone)
	return nil
}

// removePair removes the pair if it is this attachment's: by its alias, or, when a killed agent did not come to write
// one or another program made it, because no other endpoint has the interface.
func (m *Manager) removePair(ctx context.Context, id ID, own *api.WorkloadEndpoint) error {
	name := own.Spec.InterfaceName
	alias, err := m.host.alias(name)
	switch {
	case err != nil:
		return err
	case alias == missing:
		return nil
	case alias == id.alias():
		return m.host.removeLink(name)
	case strings.HasPrefix(alias, aliasPrefix):
		return nil // another attachment's
	}
	owner, err := m.owner(ctx, name, own)
	if err != nil || owner != nil {
		return err
	}
	return m.host.removeLink(name)
}

// deleteEndpoint deletes w, which may be nil, in the version that was read or any later one of the same container.
func (m *Manager) deleteEndpoint(ctx context.Context, w *api.WorkloadEndpoint) error {
	if w == nil {
		return nil
	}
	if _, err := m.weps.Delete(ctx, w.Namespace, w.Name, ""); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("delete endpoint: %w", err)
	}
	return nil
}

// release gives the addresses back. stored is the endpoint that was there, or nil.
func (m *Manager) release(ctx context.Context, id ID, stored *api.WorkloadEndpoint) error {
	freed, err := m.IPAM.ReleaseByHandle(ctx, id.handle())
	if err != nil {
		return fmt.Errorf("release address: %w", err)
	}
	// Calico has one handle per container, whatever the interface's name; its endpoints have no annotation of ours.
	if len(freed) == 0 && stored != nil && stored.Annotations[AnnotationNetwork] == "" && id.handle() != id.firstHandle() {
		if _, err := m.IPAM.ReleaseByHandle(ctx, id.firstHandle()); err != nil {
			return fmt.Errorf("release address: %w", err)
		}
	}
	return nil
}

// Attachment is one entry of the list that GC keeps.
type Attachment struct{ ContainerID, IfName string }

// GC detaches everything of a network on this host that is not in keep: endpoints, and interfaces that no endpoint
// owns. The runtime calls it when no Attach of that network is in progress (CNI specification 1.1).
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
	errs = append(errs, m.gcLinks(ctx, network, kept))
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
