// Package endpoint attaches workloads to the network and detaches them: one veth pair with the container's end inside,
// an address from IPAM, and the WorkloadEndpoint that tells every host about it (spec/calico.md §4). The front doors
// for workloads (CNI, later Docker) translate their protocols to it.
//
// What an attachment is made of, and who can find it again:
//
//   - the pair, whose host end carries the alias maneki:<network>/<container>/<interface>;
//   - the addresses, under the IPAM handle <network>.<container>;
//   - the WorkloadEndpoint, whose name holds node, orchestrator, container or pod, and interface;
//   - while it is being made, a record in the journal (StateDir/journal).
//
// All of these follow from the ID alone, so that undoing needs no memory: the same function undoes an attachment that
// failed, one that a killed agent left half done, and one whose caller died. A deletion that cannot be finished
// because the datastore does not answer is kept in StateDir/pending and done later (Run).
//
// Both ends of a pair have the hardware address ee:ee:ee:ee:ee:ee. The container's default route goes through
// 169.254.1.1 and fe80::ecee:eeff:feee:eeee, which are the same on every host.
package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint/pending"
	"github.com/manekinet/maneki/ipam"
)

// Errors that callers tell apart.
var (
	// ErrInvalid means that the Spec cannot be served, now or later.
	ErrInvalid = errors.New("invalid attachment")
	// ErrNameTaken means that the host's interface for this attachment belongs to another one.
	ErrNameTaken = errors.New("host interface belongs to another endpoint")
	// ErrNotReady means that nothing can be attached now; the same call may work later.
	ErrNotReady = errors.New("not ready")
	// ErrBroken means that an attachment is not as it was made.
	ErrBroken = errors.New("attachment is broken")
)

// Sink is told of the endpoints of this host before the watch brings them, and waits for the kernel.
type Sink interface {
	// Ensure returns when the routes (later policy) of this endpoint are in the kernel.
	Ensure(ctx context.Context, wep *api.WorkloadEndpoint) error
	// Remove returns when they are gone.
	Remove(ctx context.Context, namespace, name string) error
}

// Config is what a Manager is made of. Store, IPAM, Sink, Node, StateDir and Log must be set.
type Config struct {
	Store      datastore.Store
	IPAM       *ipam.Host // of Node
	Sink       Sink
	Node       string
	NodeLabels func() map[string]string // for the pools' nodeSelector; nil: none
	MTU        func() int               // of containers; nil or 0: the kernel's default
	Prefix     string                   // of host interfaces; empty: "cali"
	StateDir   string
	Log        *slog.Logger

	// Ready says why nothing can be attached at the moment, or nil. Optional.
	Ready func(context.Context) error
	// Netns is the namespace of the host ends; nil: the calling thread's. New copies the descriptor.
	Netns *os.File
	// Step is called with the name of each step after it; tests end the process in it. Optional.
	Step func(name string)
}

// The steps of Attach and Detach, in order, as Config.Step is told of them.
const (
	StepJournal   = "journal"   // the record is written
	StepPair      = "pair"      // the veth pair is there and up
	StepAddress   = "address"   // IPAM has assigned
	StepEndpoint  = "endpoint"  // the WorkloadEndpoint is stored
	StepContainer = "container" // addresses and routes are in the container
	StepRoutes    = "routes"    // the host has its routes

	StepPairGone     = "pair gone"
	StepRoutesGone   = "routes gone"
	StepEndpointGone = "endpoint gone"
	StepAddressGone  = "address gone"
)

// Manager attaches and detaches the workloads of one host. It is safe for concurrent use; different attachments do not
// wait for each other. Close it when no call is in progress.
type Manager struct {
	Config
	weps     datastore.Typed[api.WorkloadEndpoint, *api.WorkloadEndpoint]
	profiles datastore.Typed[api.Profile, *api.Profile]
	host     *host
	journal  journal
	pending  string // directory of package pending
	locks    locks
}

// undoTime is how long undoing may take after the caller's own time is over.
const undoTime = 5 * time.Second

// New opens the host's namespace and creates the state directory. Call Recover before the first Attach.
func New(c Config) (*Manager, error) {
	c.Prefix = cmp.Or(c.Prefix, "cali")
	if len(c.Prefix) > maxInterfaceName-5 || !api.ValidInterfaceName(c.Prefix) {
		return nil, fmt.Errorf("interface prefix %q: 1-%d letters, digits, '-', '_' and '.'", c.Prefix, maxInterfaceName-5)
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	m := &Manager{
		Config: c, weps: datastore.For[api.WorkloadEndpoint](c.Store), profiles: datastore.For[api.Profile](c.Store),
		journal: journal{dir: filepath.Join(c.StateDir, "journal")}, pending: filepath.Join(c.StateDir, "pending"),
	}
	for _, dir := range []string{m.journal.dir, m.pending} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create state directory: %w", err)
		}
	}
	var err error
	if m.host, err = openHost(c.Netns); err != nil {
		return nil, err
	}
	return m, nil
}

// Close gives the descriptors back. Attachments stay.
func (m *Manager) Close() { m.host.close() }

// CheckReady says why nothing can be attached at the moment, or nil.
func (m *Manager) CheckReady(ctx context.Context) error {
	if m.Ready == nil {
		return nil
	}
	if err := m.Ready(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Run finishes what could not be finished when it was asked for: pending deletions and undoings that failed. It
// returns the context's error.
func (m *Manager) Run(ctx context.Context) error {
	const period = 10 * time.Second
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := m.finish(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("unfinished attachments remain", "err", err)
		}
	}
}

// Recover does at start what a killed agent, or one that was not running, left to do. It also names interfaces of ours
// that no endpoint owns; it does not remove them, because the datastore may be the wrong one.
func (m *Manager) Recover(ctx context.Context) error {
	err := errors.Join(m.journal.sweep(), pending.Sweep(m.pending), m.finish(ctx))
	m.reportOrphans(ctx)
	return err
}

// finish works off the journal and the pending deletions.
func (m *Manager) finish(ctx context.Context) error {
	var errs []error
	names, err := m.journal.list()
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, m.undoJournalled(ctx, name))
	}
	records, problems, err := pending.List(m.pending)
	errs = append(append(errs, err), problems...)
	for _, r := range records {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, m.deleteNow(ctx, fromRecord(r)))
	}
	return errors.Join(errs...)
}

// undoJournalled undoes the attachment that the journal has under a host interface, unless it is being made now.
func (m *Manager) undoJournalled(ctx context.Context, hostName string) error {
	unlock, err := m.locks.lock(ctx, hostName)
	if err != nil {
		return err
	}
	defer unlock()
	id, ok, err := m.journal.read(hostName)
	if err != nil || !ok {
		return err
	}
	m.Log.Info("undo unfinished attachment", "attachment", id.String(), "interface", hostName)
	return m.undo(ctx, id)
}

// deleteNow works off one pending deletion.
func (m *Manager) deleteNow(ctx context.Context, id ID) error {
	unlock, err := m.locks.lock(ctx, id.hostName(m.Prefix))
	if err != nil {
		return err
	}
	defer unlock()
	return m.deletePending(ctx, id)
}

// deletePending is deleteNow for a caller that holds the lock.
func (m *Manager) deletePending(ctx context.Context, id ID) error {
	if !pending.Has(m.pending, id.record()) {
		return nil // somebody else did it while we waited for the lock
	}
	if err := m.detach(ctx, id); err != nil {
		return err
	}
	m.Log.Info("pending deletion done", "attachment", id.String())
	return pending.Remove(m.pending, id.record())
}

// reportOrphans logs host interfaces with our alias and without an endpoint.
func (m *Manager) reportOrphans(ctx context.Context) {
	links, err := m.ourLinks()
	if err != nil || len(links) == 0 {
		return
	}
	endpoints, err := m.localEndpoints(ctx)
	if err != nil {
		m.Log.Warn("endpoints cannot be compared with interfaces", "err", err)
		return
	}
	owned := map[string]bool{}
	for _, w := range endpoints {
		owned[w.Spec.InterfaceName] = true
	}
	for name, alias := range links {
		if !owned[name] {
			m.Log.Warn("interface without endpoint: its container is not reachable; delete and attach it again",
				"interface", name, "alias", alias)
		}
	}
}

// localEndpoints lists the endpoints of this node. Endpoints that cannot be read are logged.
func (m *Manager) localEndpoints(ctx context.Context) ([]*api.WorkloadEndpoint, error) {
	all, _, problems, err := m.weps.List(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	for _, p := range problems {
		m.Log.Warn("endpoint cannot be read", "err", p)
	}
	var local []*api.WorkloadEndpoint
	for _, w := range all {
		if w.Spec.Node == m.Node {
			local = append(local, w)
		}
	}
	return local, nil
}
