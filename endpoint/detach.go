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

// Detach removes an attachment: the routes, the pair, the endpoint, the addresses. What is not there is no error. When
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
	if err == nil && (id.Port != "" || stored.Spec.ContainerID == id.ContainerID) {
		own = stored
	} else if err == nil {
		stored = nil // a pod's newer sandbox has taken the endpoint over: only the old address is left to give back
		return m.release(ctx, id, stored)
	}
	// Routes first: while they are wanted, their table would try to put them on an interface that is no more.
	if err := m.Sink.Remove(ctx, own.Namespace, own.Name); err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	m.Step(StepRoutesGone)
	if err := m.removePair(ctx, id, own); err != nil {
		return err
	}
	m.Step(StepPairGone)
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
	if id.Port != "" {
		return nil // its addresses are the caller's (Port.Addrs)
	}
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
