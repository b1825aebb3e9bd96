package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Config says which lab to build, and how.
type Config struct {
	// Name of the lab; empty means DefaultName.
	Name string
	// Root is the state directory; empty means DefaultRoot.
	Root string
	// Binary is the maneki executable that runs on every host; empty means the
	// one that is running.
	Binary   string
	Topology Topology
	// Bound ties every process to the calling one: they are killed by the
	// kernel when it dies, however it dies.
	Bound bool
	// NoAgents leaves out agents, CNI installation and containers.
	NoAgents bool
	Log      *slog.Logger
	// Step, when set, is called before each change; the crash tests use it.
	Step func(step string)
}

// Lab is a lab that exists. Close releases what this process holds of it and
// leaves the lab itself alone.
type Lab struct {
	cfg  Config
	plan *Plan
	rec  record
	lock *os.File

	reapers sync.WaitGroup // one per child process, ends with it
	spawn   *space         // for processes born in the root namespaces

	mu     sync.Mutex
	spaces map[Process]*space
}

func (c *Config) setDefaults() error {
	if c.Root == "" {
		c.Root = DefaultRoot
	}
	if c.Name == "" {
		c.Name = c.Topology.Name
	}
	if c.Name == "" {
		c.Name = DefaultName
	}
	if err := checkName("name", c.Name); err != nil {
		return classified{ErrInput, err.Error()}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	if c.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own executable: %w", err)
		}
		c.Binary = exe
	}
	if strings.HasPrefix(c.Binary, "/run/") {
		return fmt.Errorf("the executable %s lies under /run, which every lab host has of its own: move it elsewhere", c.Binary)
	}
	return nil
}

// Classes of errors that a caller tells apart; the text is in the error that
// wraps them.
var (
	ErrNotRoot  = errors.New("the lab makes namespaces and needs root")
	ErrNotFound = errors.New("not found")
	ErrBusy     = errors.New("in use")
	ErrInput    = errors.New("invalid input")
)

// classified is an error whose text does not repeat its class.
type classified struct {
	class error
	text  string
}

func (e classified) Error() string { return e.text }
func (e classified) Unwrap() error { return e.class }

// requireOutside checks what every command needs that changes a lab.
func requireOutside() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	if m, inside := os.LookupEnv(Marker); inside {
		return fmt.Errorf("this shell runs inside the lab (%s): leave it first", m)
	}
	return nil
}

func newLab(cfg Config) (*Lab, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Lab{cfg: cfg, spaces: map[Process]*space{}}, nil
}

// Up builds a lab and starts everything in it. What an interrupted command
// left under the same name is removed first. When Up fails, or ctx ends while
// it runs, nothing of the lab remains.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	if err := requireOutside(); err != nil {
		return nil, err
	}
	l, err := newLab(cfg)
	if err != nil {
		return nil, err
	}
	l.cfg.Topology.setDefaults()
	if err := l.cfg.Topology.Validate(); err != nil {
		return nil, err
	}
	if l.plan, err = NewPlan(l.cfg.Topology); err != nil {
		return nil, err
	}
	if l.lock, err = lockLab(ctx, l.cfg.Root, l.cfg.Name); err != nil {
		return nil, err
	}
	if old, err := readRecord(l.cfg.Root, l.cfg.Name); err == nil && old.Complete && l.anyAlive(old.Topology) {
		l.Close()
		return nil, classified{ErrBusy, fmt.Sprintf("lab %s is up: remove it first with `maneki lab down --name %s`", l.cfg.Name, l.cfg.Name)}
	}
	l.spawn = newSpace()
	if err := l.build(ctx); err != nil {
		err = errors.Join(err, l.Destroy(context.WithoutCancel(ctx)))
		return nil, err
	}
	return l, nil
}

// Open returns a lab that another command built.
func Open(root, name string) (*Lab, error) {
	l, err := newLab(Config{Root: root, Name: name})
	if err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	return l, nil
}

// load reads what the lab consists of from its state.
func (l *Lab) load() error {
	var err error
	l.rec, err = readRecord(l.cfg.Root, l.cfg.Name)
	if errors.Is(err, os.ErrNotExist) {
		return classified{ErrNotFound, fmt.Sprintf("there is no lab %s: start one with `maneki lab up`", l.cfg.Name)}
	}
	if err != nil {
		return err
	}
	l.cfg.Topology = l.rec.Topology
	if l.rec.Binary != "" {
		l.cfg.Binary = l.rec.Binary
	}
	l.plan, err = NewPlan(l.cfg.Topology)
	return err
}

// Change opens a lab and takes its lock, for commands that change it.
func Change(ctx context.Context, root, name string) (*Lab, error) {
	if err := requireOutside(); err != nil {
		return nil, err
	}
	l, err := Open(root, name)
	if err != nil {
		return nil, err
	}
	if l.lock, err = lockLab(ctx, l.cfg.Root, l.cfg.Name); err != nil {
		return nil, err
	}
	// It may have changed, or gone, while this command waited.
	if err := l.load(); err != nil {
		return nil, errors.Join(err, removeLockIfGone(l))
	}
	l.spawn = newSpace()
	return l, nil
}

// removeLockIfGone drops the lock file that this command made for a lab that
// is not there any more.
func removeLockIfGone(l *Lab) error {
	err := removeLock(l.cfg.Root, l.lock)
	l.Close()
	return err
}

// Close gives back threads and the lock. Processes of the lab go on, unless
// the lab is bound to this process: then call Destroy.
func (l *Lab) Close() {
	l.mu.Lock()
	for p, s := range l.spaces {
		s.close()
		delete(l.spaces, p)
	}
	l.mu.Unlock()
	if l.spawn != nil {
		l.spawn.close()
		l.spawn = nil
	}
	if l.lock != nil {
		_ = l.lock.Close() // closing gives up the flock
		l.lock = nil
	}
}

// Plan returns the addresses of the lab.
func (l *Lab) Plan() *Plan { return l.plan }

// Name returns the lab's name.
func (l *Lab) Name() string { return l.cfg.Name }

// Topology returns the lab's topology, containers that were added included.
func (l *Lab) Topology() Topology { return l.cfg.Topology }

func (l *Lab) anyAlive(t Topology) bool {
	for _, e := range t.entries() {
		if readPID(l.path(e.name, "pause.pid")).Alive() {
			return true
		}
	}
	return false
}

// build makes the lab in the order in which things need each other.
func (l *Lab) build(ctx context.Context) error {
	if err := l.clean(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir(), 0o700); err != nil {
		return fmt.Errorf("make state of lab %s: %w", l.cfg.Name, err)
	}
	l.rec = record{Topology: l.cfg.Topology, Binary: l.cfg.Binary}
	if err := l.writeRecord(); err != nil {
		return err
	}
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"directories", func(context.Context) error { return l.makeBases() }},
		{"namespaces", l.startMembers},
		{"links", l.buildUnderlay},
		{"files", l.writeHostFiles},
		{"etcd", l.startEtcd},
		{"agents", l.startAgents},
		{"containers", l.startContainers},
	}
	for _, s := range steps {
		l.cfg.Step(s.name)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("build lab %s: %w", l.cfg.Name, err)
		}
		if err := s.run(ctx); err != nil {
			return err
		}
	}
	l.cfg.Step("complete")
	l.rec.Complete = true
	return l.writeRecord()
}

// startMembers starts the pause processes of switches, routers and hosts.
func (l *Lab) startMembers(ctx context.Context) error {
	group, _ := errgroup.WithContext(ctx)
	start := func(name string, kind Kind) {
		group.Go(func() error {
			if err := os.MkdirAll(filepath.Dir(l.path(name, "")+"/"), 0o700); err != nil {
				return fmt.Errorf("make state of %s: %w", name, err)
			}
			l.cfg.Step("member " + name)
			_, err := l.startPause(l.spawn, name, kind)
			return err
		})
	}
	for _, s := range l.plan.Switches {
		start(s.Subnet, KindSwitch)
	}
	for _, r := range l.plan.Routers {
		start(r.Name, KindRouter)
	}
	for _, h := range l.plan.Hosts {
		start(h.Name, KindHost)
	}
	return group.Wait()
}

// pause returns the pause process of a member, which must be running.
func (l *Lab) pause(member string) (Process, error) {
	p := readPID(l.path(member, "pause.pid"))
	if !p.Alive() {
		return p, fmt.Errorf("%s is not running: its namespaces are gone, run `maneki lab down --name %s`", member, l.cfg.Name)
	}
	return p, nil
}

// enter returns the thread inside a member's namespaces; it lives until Close.
func (l *Lab) enter(member string) (*space, error) {
	p, err := l.pause(member)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.spaces[p]; ok {
		return s, nil
	}
	s, err := enterSpace(p)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", member, err)
	}
	l.spaces[p] = s
	return s, nil
}

// leave ends the thread inside a member that is about to go.
func (l *Lab) leave(member string) {
	p := readPID(l.path(member, "pause.pid"))
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.spaces[p]; ok {
		s.close()
		delete(l.spaces, p)
	}
}

// host finds a host of the topology.
func (l *Lab) host(name string) (Host, error) {
	i := slices.IndexFunc(l.cfg.Topology.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return Host{}, classified{ErrNotFound, fmt.Sprintf("lab %s has no host %q, it has: %s",
			l.cfg.Name, name, strings.Join(l.cfg.Topology.hostNames(), ", "))}
	}
	return l.cfg.Topology.Hosts[i], nil
}

func (l *Lab) hostPlan(name string) NodePlan {
	i := slices.IndexFunc(l.plan.Hosts, func(n NodePlan) bool { return n.Name == name })
	return l.plan.Hosts[i]
}
