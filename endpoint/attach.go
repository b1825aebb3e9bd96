package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/convert"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/ipam"
)

// defaultMTU is the Ethernet's.
const defaultMTU = 1500

// attachment is one Attach in progress.
type attachment struct {
	Spec
	hostName string
	wep      *api.WorkloadEndpoint
	v4, v6   bool
}

// Attach connects a container. It returns when the container's packets can flow. When it fails, or ctx ends, all of it
// is undone; what cannot be undone at the moment is undone later by Run.
//
// Attaching what is attached returns the same result again and repairs the container's side if it is damaged.
func (m *Manager) Attach(ctx context.Context, spec Spec) (Result, error) {
	a, err := m.plan(spec)
	if err != nil {
		return Result{}, err
	}
	unlock, err := m.locks.lock(ctx, a.hostName)
	if err != nil {
		return Result{}, fmt.Errorf("attach %s: %w", spec.ID, err)
	}
	defer unlock()
	r, err := m.attachLocked(ctx, a)
	if err != nil {
		return Result{}, fmt.Errorf("attach %s: %w", spec.ID, err)
	}
	return r, nil
}

// plan checks the whole request before anything is changed.
func (m *Manager) plan(spec Spec) (*attachment, error) {
	if err := spec.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := checkNetns(spec.Netns, m.host.id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	a := &attachment{Spec: spec, hostName: spec.hostName(m.Prefix)}
	a.v4, a.v6 = spec.families()
	if a.MTU == 0 && m.Config.MTU != nil {
		a.MTU = m.Config.MTU()
	}
	a.MTU = cmp.Or(a.MTU, defaultMTU)
	a.wep = spec.endpoint(m.Node, a.hostName)
	if err := a.wep.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return a, nil
}

func (m *Manager) attachLocked(ctx context.Context, a *attachment) (Result, error) {
	if err := m.CheckReady(ctx); err != nil {
		return Result{}, err
	}
	// The runtime may use a container's ID again whose deletion is still to be done.
	if err := m.deletePending(ctx, a.ID); err != nil {
		return Result{}, fmt.Errorf("delete the one before: %w", err)
	}
	stored, err := m.prepare(ctx, a)
	switch {
	case err != nil:
		return Result{}, err
	case stored != nil && stored.Spec.ContainerID == a.ContainerID:
		return m.repeat(ctx, a, stored)
	case stored != nil:
		// A pod's new sandbox: the endpoint is taken over. The address of the old one stays with its handle until
		// the runtime deletes it.
		if err := m.host.removeLink(a.hostName); err != nil {
			return Result{}, err
		}
	}
	return m.attachNew(ctx, a, stored)
}

// prepare reads what is stored under the endpoint's name, nil for nothing, and sees to the profile.
func (m *Manager) prepare(ctx context.Context, a *attachment) (stored *api.WorkloadEndpoint, err error) {
	g, gctx := errgroup.WithContext(ctx)
	if len(a.Profiles) == 0 {
		admit := admitNoOthers
		if a.Pod != "" {
			admit = admitAll
		}
		g.Go(func() error { return m.ensureProfile(gctx, networkProfile(a.Network, admit)) })
	}
	for _, name := range a.Profiles {
		if p := convert.BareProfile(name); p != nil {
			g.Go(func() error { return m.ensureProfile(gctx, p) })
		}
	}
	g.Go(func() (err error) {
		stored, err = m.weps.Get(gctx, a.wep.Namespace, a.wep.Name)
		if errors.Is(err, datastore.ErrNotFound) {
			stored, err = nil, nil
		}
		return err
	})
	return stored, g.Wait()
}

// admission says whom the profile of a network without policy lets in (spec/calico.md §4).
type admission uint8

const (
	admitMembers  admission = iota + 1 // of the same network: Docker's
	admitNoOthers                      // the same, and what is no container: a plain CNI network's
	admitAll                           // a pod's
)

// networkProfile is the profile of a network without policy. Calico's CNI plugin lets members alone into a container
// that is no pod, and so keeps the other hosts and everybody outside out of it; here a container keeps out the
// containers of other networks.
func networkProfile(network string, admit admission) *api.Profile {
	p := &api.Profile{Spec: api.ProfileSpec{
		Ingress:       []api.Rule{{Action: api.ActionAllow}},
		Egress:        []api.Rule{{Action: api.ActionAllow}},
		LabelsToApply: map[string]string{network: ""},
	}}
	if admit != admitAll {
		p.Spec.Ingress[0].Source.Selector = "has(" + network + ")"
	}
	if admit == admitNoOthers {
		noContainer := api.EntityRule{NotSelector: "has(" + api.LabelOrchestrator + ")"}
		p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{Action: api.ActionAllow, Source: noContainer})
	}
	p.Name = network
	p.Default()
	return p
}

// ensureProfile creates a profile that is not there: an endpoint without any is denied everything. Those of namespaces
// and service accounts are Kubernetes' where there is Kubernetes. An existing one is left as somebody may have changed
// it.
func (m *Manager) ensureProfile(ctx context.Context, p *api.Profile) error {
	if _, err := m.profiles.Get(ctx, "", p.Name); err == nil || !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	if err := p.Validate(); err != nil {
		return fmt.Errorf("%w: profile %s: %w", ErrInvalid, p.Name, err)
	}
	if err := m.profiles.Create(ctx, p); err != nil && !errors.Is(err, datastore.ErrExists) {
		return fmt.Errorf("create profile: %w", err)
	}
	return nil
}

// attachNew makes an attachment. old is the endpoint of the same name to be replaced, or nil.
func (m *Manager) attachNew(ctx context.Context, a *attachment, old *api.WorkloadEndpoint) (_ Result, err error) {
	if err := m.journal.begin(a.hostName, a.ID); err != nil {
		return Result{}, err
	}
	m.Step(StepJournal)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.undoLate(ctx, a.ID))
		}
	}()
	in, err := m.begin(ctx, a)
	if in != nil {
		defer in.close()
	}
	if err != nil {
		return Result{}, err
	}
	// Nobody answers for the endpoint before both are done, so neither has to wait for the other. The failure of one
	// does not cancel the other: of a write cut short nobody knows whether it happens, and undoing needs to know.
	var g errgroup.Group
	seen := *a.wep // storing completes the metadata of a.wep
	g.Go(func() error { return m.store(ctx, a.wep, old) })
	g.Go(func() error { return m.complete(ctx, &seen, in) })
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil { // the caller is gone: nobody would delete what we made
		return Result{}, err
	}
	if err := m.journal.end(a.hostName); err != nil {
		return Result{}, err
	}
	r := a.result()
	r.Created = true
	return r, nil
}

// begin makes the pair and assigns the addresses at the same time: the kernel and the datastore know nothing of each
// other yet. The pair is returned also with an error of the other half.
func (m *Manager) begin(ctx context.Context, a *attachment) (in *inside, err error) {
	var g errgroup.Group // without cancelling, as in attachNew
	g.Go(func() (err error) {
		in, err = m.createPair(ctx, a)
		m.Step(StepPair)
		return err
	})
	g.Go(func() error {
		assigned, err := m.assign(ctx, a)
		m.Step(StepAddress)
		for _, addr := range assigned {
			a.wep.Spec.IPNetworks = append(a.wep.Spec.IPNetworks, netip.PrefixFrom(addr, addr.BitLen()).String())
		}
		return err
	})
	return in, g.Wait()
}

// complete gives the pair the endpoint's addresses and the host the routes to them.
func (m *Manager) complete(ctx context.Context, wep *api.WorkloadEndpoint, in *inside) error {
	addrs, err := addresses(wep)
	if err == nil {
		err = in.address(addrs)
	}
	if err != nil {
		return err
	}
	m.Step(StepContainer)
	if err := m.Sink.Ensure(ctx, wep); err != nil {
		return fmt.Errorf("program the host: %w", err)
	}
	m.Step(StepRoutes)
	return nil
}

// createPair makes the veth pair. An interface of the name that nobody owns any more is removed first.
func (m *Manager) createPair(ctx context.Context, a *attachment) (*inside, error) {
	p := pair{
		hostName: a.hostName, ifName: a.IfName, mac: a.mac(), mtu: a.MTU, alias: a.alias(),
		v4: a.v4, v6: a.v6, forwarding: a.AllowForwarding, linkLocal: gateway6,
	}
	in, err := m.host.createPair(a.Netns, p)
	if !errors.Is(err, errNameTaken) {
		return in, err
	}
	if err := m.removeStale(ctx, a.hostName, a.wep); err != nil {
		return nil, err
	}
	return m.host.createPair(a.Netns, p)
}

// removeStale removes the host's interface if no other endpoint owns it.
func (m *Manager) removeStale(ctx context.Context, hostName string, own *api.WorkloadEndpoint) error {
	owner, err := m.owner(ctx, hostName, own)
	if err != nil {
		return err
	}
	if owner != nil {
		return fmt.Errorf("%w: %s is of %s/%s (container %s); the name is made of the head of the container's ID",
			ErrNameTaken, hostName, owner.Namespace, owner.Name, owner.Spec.ContainerID)
	}
	m.Log.Warn("remove stale interface", "interface", hostName)
	return m.host.removeLink(hostName)
}

// owner is the endpoint of this node, other than own, that has the host's interface; nil if there is none.
func (m *Manager) owner(ctx context.Context, hostName string, own *api.WorkloadEndpoint) (*api.WorkloadEndpoint, error) {
	local, err := m.localEndpoints(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(local, func(w *api.WorkloadEndpoint) bool {
		return w.Spec.InterfaceName == hostName && (w.Namespace != own.Namespace || w.Name != own.Name)
	})
	if i < 0 {
		return nil, nil
	}
	return local[i], nil
}

// store writes the endpoint, in the place of old if that is not nil.
func (m *Manager) store(ctx context.Context, wep, old *api.WorkloadEndpoint) error {
	var err error
	if old == nil {
		err = m.weps.Create(ctx, wep)
	} else {
		wep.ResourceVersion = old.ResourceVersion
		err = m.weps.Update(ctx, wep)
	}
	if err != nil {
		return fmt.Errorf("store endpoint: %w", err)
	}
	m.Step(StepEndpoint)
	return nil
}

// assign returns the addresses in the order in which they are stored: IPv4 first.
func (m *Manager) assign(ctx context.Context, a *attachment) ([]netip.Addr, error) {
	attrs := map[string]string{"node": m.Node, "timestamp": time.Now().UTC().String()}
	if a.Pod != "" {
		attrs["namespace"], attrs["pod"] = a.namespace(), a.Pod
	}
	if len(a.Addrs) > 0 {
		return m.assignFixed(ctx, a, attrs)
	}
	r := ipam.Request{
		Host: m.Node, Handle: a.handle(), Attrs: attrs, Pools4: a.Pools4, Pools6: a.Pools6, NamespaceLabels: a.NamespaceLabels,
	}
	if m.NodeLabels != nil {
		r.NodeLabels = m.NodeLabels()
	}
	if a.v4 {
		r.Num4 = 1
	}
	if a.v6 {
		r.Num6 = 1
	}
	assigned, err := m.IPAM.AutoAssign(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("assign address: %w", err)
	}
	var addrs []netip.Addr
	for _, x := range assigned {
		addrs = append(addrs, x.Addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

func (m *Manager) assignFixed(ctx context.Context, a *attachment, attrs map[string]string) ([]netip.Addr, error) {
	addrs := slices.SortedFunc(slices.Values(a.Addrs), netip.Addr.Compare)
	for _, addr := range addrs {
		r := ipam.AssignRequest{Addr: addr, Host: m.Node, Handle: a.handle(), Attrs: attrs}
		if _, err := m.IPAM.AssignIP(ctx, r); err != nil {
			return nil, fmt.Errorf("assign address %s: %w", addr, err)
		}
	}
	return addrs, nil
}

// repeat answers an Attach of what is attached.
func (m *Manager) repeat(ctx context.Context, a *attachment, stored *api.WorkloadEndpoint) (Result, error) {
	a.wep = stored
	addrs, err := addresses(stored)
	if err != nil {
		return Result{}, err
	}
	a.v4, a.v6 = families(addrs)
	a.hostName = stored.Spec.InterfaceName
	if mac, err := net.ParseMAC(stored.Spec.MAC); err == nil {
		a.MAC = mac
	}
	if err := m.checkKernel(a.Netns, a.IfName, stored); err != nil {
		m.Log.Info("repair attachment", "attachment", a.ID.String(), "reason", err)
		if err := m.host.removeLink(a.hostName); err != nil {
			return Result{}, err
		}
		in, err := m.createPair(ctx, a)
		if err != nil {
			return Result{}, err
		}
		defer in.close()
		return a.result(), m.complete(ctx, stored, in)
	}
	return a.result(), m.Sink.Ensure(ctx, stored)
}

// result describes the attachment as its endpoint has it.
func (a *attachment) result() Result {
	r := Result{HostInterface: a.hostName, IfName: a.IfName, MAC: a.mac(), MTU: a.MTU}
	r.Addresses, _ = addresses(a.wep) // written or checked by the caller
	for _, route := range containerRoutes(0, r.Addresses) {
		r.Routes = append(r.Routes, fromKernel(route))
	}
	return r
}

// addresses parses the endpoint's ipNetworks.
func addresses(w *api.WorkloadEndpoint) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range w.Spec.IPNetworks {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.IsSingleIP() {
			return nil, fmt.Errorf("endpoint %s/%s: ipNetworks: %q is not a single address", w.Namespace, w.Name, s)
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("endpoint %s/%s has no address", w.Namespace, w.Name)
	}
	return out, nil
}

// undoLate is undo for a caller whose own time may be over.
func (m *Manager) undoLate(ctx context.Context, id ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := m.undo(ctx, id); err != nil {
		return fmt.Errorf("undo, to be repeated later: %w", err)
	}
	return nil
}

// undo removes every trace of an attachment and its journal record. Whoever calls it holds the lock.
func (m *Manager) undo(ctx context.Context, id ID) error {
	if err := m.detach(ctx, id); err != nil {
		return err
	}
	return m.journal.end(id.hostName(m.Prefix))
}
