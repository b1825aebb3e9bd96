// Package agent wires one host. Run opens the store, registers the host, starts
// the calculation, the tables, the speaker and the front doors, and stops them
// all again; everything else in this package is one of those steps.
//
// A restart leaves the kernel as it is: nothing is written before the
// datastore's snapshot and the kernel's own state are both known, routes learnt
// by BGP are kept until the speaker has heard its peers again, and sessions end
// without a NOTIFICATION so that the peers keep theirs (RFC 4724).
package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/cni"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/docker/resolver"
	"github.com/manekinet/maneki/endpoint"
	"github.com/manekinet/maneki/ipam"
	"github.com/manekinet/maneki/pathmtu"
	"github.com/manekinet/maneki/resource"
)

// Agent is one running host.
type Agent struct {
	opts    Options
	started time.Time
	conn    *connection
	store   datastore.Store
	objects *resource.Client
	ipam    *ipam.Client
	tables  *tables
	speaker *bgp.Speaker
	pipe    *pipeline
	prober  *pathmtu.Prober // nil where paths are not measured
	found   []string        // what it found last that is not as it should be
	node    *nodeState
	streams streams
	reports reports
	docker  *docker.Server      // nil when Docker is not served
	names   *resolver.Directory // nil as well
	control *control
}

// Run is the life of an agent: it returns nil after ctx is done and everything
// has stopped, or the error that made it impossible to start or go on.
func Run(ctx context.Context, opts Options) error {
	if err := opts.resolve(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return refuse(ErrRootNeeded, "the agent must run as root: it makes interfaces and routes")
	}
	release, err := lock(opts.RunDir)
	if err != nil {
		return err
	}
	defer release()
	a := &Agent{opts: opts, started: time.Now()}
	if a.docker, err = opts.listenDocker(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.serveDocker(ctx) })
	g.Go(func() error { return a.start(ctx) })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// start finds the datastore, makes this host known in it and serves.
func (a *Agent) start(ctx context.Context) (err error) {
	if err := a.look(); err != nil {
		return err
	}
	if a.conn, err = openDatastore(ctx, a.opts, a.node.primary()); err != nil {
		return err
	}
	defer a.conn.Close()
	a.store = a.conn.store
	if err := a.prepare(ctx); err != nil {
		return err
	}
	// From here on the computer is changed.
	if err := a.register(ctx); err != nil {
		return err
	}
	if err := a.claimDatastore(ctx); err != nil {
		return err
	}
	return a.serve(ctx)
}

// look learns what this host is, before a datastore is asked or begun.
func (a *Agent) look() error {
	var err error
	if a.tables, err = newTables(a.opts); err != nil {
		return err
	}
	if a.node, err = detectNode(a.opts, a.tables.handle); err != nil {
		return err
	}
	a.logAddresses()
	return nil
}

// prepare reads and checks, and changes nothing outside this process.
func (a *Agent) prepare(ctx context.Context) error {
	log := a.opts.Log
	a.objects = resource.New(a.store, log)
	if err := a.checkBGPPort(ctx); err != nil {
		return err
	}
	restarted, err := a.tables.restarted(ctx)
	if err != nil {
		return err
	}
	a.speaker = bgp.New(log.With("part", "bgp"), bgp.Options{RestartedRecently: restarted})
	a.ipam = ipam.New(a.store, ipam.Options{Log: log.With("part", "ipam"), InUse: a.tables.inUse, Subnets: a.tables.connected})
	options := calc.Options{Node: a.opts.Node, InterfacePrefix: a.opts.InterfacePrefix, Felix: a.opts.Felix}
	if a.docker != nil {
		options.LocalAddr = resolver.DefaultAddr().Addr()
	}
	core := calc.New(options)
	a.pipe = newPipeline(core, a.tables, a.speaker, a.opts)
	a.control = newControl(a)
	a.pipe.onStore, a.pipe.onState = a.storeNews, func(s calc.State) {
		a.node.follow(s)
		a.control.follow(s)
	}
	if a.docker != nil {
		a.names = resolver.NewDirectory(a.opts.Node)
		a.pipe.onEvents = a.names.Apply
	}
	a.measurePaths()
	return nil
}

// serve starts everything and waits. Each line is one owner of goroutines.
func (a *Agent) serve(ctx context.Context) error {
	log := a.opts.Log
	host := ipam.NewHost(a.ipam, a.opts.Node)
	eps, err := endpoint.New(endpoint.Config{
		Store: a.store, IPAM: host, Sink: a.pipe, Node: a.opts.Node, NodeLabels: a.node.labels, Ready: a.attachable,
		MTU: a.node.podMTU, Prefix: a.opts.InterfacePrefix, StateDir: filepath.Join(a.opts.StateDir, "cni"), Log: log.With("part", "endpoint"),
	})
	if err != nil {
		return err
	}
	defer eps.Close()
	if a.docker != nil {
		defer a.docker.Stop() // its last calls use eps
	}
	servers, err := a.listen()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.tables.run(ctx) })
	g.Go(func() error { return a.tables.watch(ctx, a.pipe.linksChanged, a.pipe.underlayChanged) })
	g.Go(func() error { return a.pipe.run(ctx) })
	g.Go(func() error { return datastore.Follow(ctx, a.store, a.pipe.deliver, calc.Queries()...) })
	if a.opts.BGP {
		g.Go(func() error { return a.speaker.Run(ctx) })
	}
	g.Go(func() error { return a.control.run(ctx) })
	g.Go(func() error { return host.Run(ctx) })
	g.Go(func() error { return a.conn.watch(ctx) })
	g.Go(func() error { return a.keepDatastore(ctx) })
	g.Go(func() error { return a.keepAddress(ctx) })
	g.Go(func() error { return a.keepAutoHost(ctx) })
	g.Go(func() error { return a.keepTunnels(ctx, host) })
	g.Go(func() error { return a.terminateFlows(ctx) })
	if a.prober != nil {
		g.Go(func() error { return a.runProber(ctx) })
	}
	g.Go(func() error { return newReporter(a).run(ctx) })
	for _, s := range servers {
		g.Go(func() error { return s.serve(ctx) })
	}
	g.Go(func() error { return a.openFrontDoors(ctx, eps) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped; the network of this host goes on without the agent")
	return nil
}

// openFrontDoors lets workloads in once the first full state is in the kernel:
// an address handed out earlier could collide with one not yet known.
func (a *Agent) openFrontDoors(ctx context.Context, eps *endpoint.Manager) error {
	if err := a.pipe.waitInSync(ctx); err != nil {
		return err
	}
	if err := eps.Recover(ctx); err != nil {
		a.opts.Log.Warn("some interrupted attachments could not be settled; they are tried again at the next start", "err", err)
	}
	server, err := cni.Listen(cni.Config{Socket: a.opts.RunDir + "/cni.sock", Endpoints: eps, Log: a.opts.Log.With("part", "cni")})
	if err != nil {
		return err
	}
	a.openDocker(eps)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return eps.Run(ctx) })
	g.Go(func() error { return server.Serve(ctx) })
	g.Go(func() error { return a.serveNames(ctx) })
	a.pipe.ready()
	a.opts.Log.Info("ready", "after", time.Since(a.started).Round(time.Millisecond))
	a.opts.Notice("Maneki node started successfully")
	a.invite()
	return g.Wait()
}

// attachable says why no workload can be attached at the moment: somebody has
// locked the datastore for a migration.
func (a *Agent) attachable(context.Context) error {
	a.pipe.mu.Lock()
	defer a.pipe.mu.Unlock()
	if a.pipe.state.Locked {
		return errors.New("the datastore is locked for a migration (ClusterInformation default has datastoreReady: false)")
	}
	return nil
}

// storeNews records whether the datastore answers, and logs a change of that.
func (a *Agent) storeNews(err error) {
	switch changed := a.conn.connected(err); {
	case changed && err != nil:
		a.opts.Log.Warn("the datastore does not answer; this host's network goes on as it is", "err", err)
	case changed:
		a.opts.Log.Info("the datastore answers again")
	}
}
