package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	readyTimeout = 60 * time.Second
	stopGrace    = 10 * time.Second
	pollInterval = 10 * time.Millisecond
	healthPort   = 9099
)

// agentArgs is the command line of a host's agent.
func (l *Lab) agentArgs(h Host) []string {
	address := l.hostPlan(h.Name).Address4()
	args := []string{"node", "run", "--name", h.Name, "--ip", address.String()}
	if a := l.hostPlan(h.Name).Address6(); a.IsValid() {
		args = append(args, "--ip6", a.String())
	}
	if l.runsEmbedded(h.Name) {
		args = append(args, "--etcd-listen="+l.etcdURL(h.Name))
	} else if l.Endpoints(h.Name) == "" {
		args = append(args, "--join="+l.etcdURL(l.cfg.Topology.Hosts[0].Name))
	}
	for _, k := range slices.Sorted(maps.Keys(h.Labels)) {
		args = append(args, "--label", k+"="+h.Labels[k])
	}
	return append(args, h.Args...)
}

// runsEmbedded says whether a host begins the embedded etcd.
func (l *Lab) runsEmbedded(host string) bool {
	t := l.cfg.Topology
	return t.Etcd.Mode != EtcdExternal && t.Hosts[0].Name == host
}

// hostEnv are the variables that agents and commands on a host get.
func (l *Lab) hostEnv(h Host) []string {
	env := []string{"NODENAME=" + h.Name, "HOSTNAME=" + h.Name}
	if e := l.Endpoints(h.Name); e != "" {
		env = append(env, "DATASTORE_TYPE=etcdv3", "ETCD_ENDPOINTS="+e)
	}
	if h.ASNumber != 0 {
		env = append(env, "AS="+strconv.FormatUint(uint64(h.ASNumber), 10))
	}
	for _, k := range slices.Sorted(maps.Keys(h.Env)) {
		env = append(env, k+"="+h.Env[k])
	}
	return env
}

// startAgents starts the agents that start with the lab. With the embedded
// etcd the first one goes ahead until its datastore can be reached; the others
// start at the same time as each other.
func (l *Lab) startAgents(ctx context.Context) error {
	if l.cfg.NoAgents {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range l.cfg.Topology.Hosts {
		if h.Agent == AgentManual {
			continue
		}
		p, err := l.launchAgent(h)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		if l.runsEmbedded(h.Name) {
			if err := l.waitDatastore(ctx, h.Name, p); err != nil {
				return err
			}
		}
		group.Go(func() error { return l.finishAgent(ctx, h, p) })
	}
	return group.Wait()
}

func (l *Lab) launchAgent(h Host) (Process, error) {
	l.cfg.Step("agent " + h.Name)
	return l.startDaemon(h.Name, "agent", l.cfg.Binary, l.agentArgs(h), l.hostEnv(h))
}

// finishAgent waits for readiness and installs CNI meanwhile.
func (l *Lab) finishAgent(ctx context.Context, h Host, p Process) error {
	if err := l.installCNI(ctx, h.Name); err != nil {
		return err
	}
	return l.waitReady(ctx, h.Name, p)
}

// StartAgent starts the agent of a host and waits until it is ready.
func (l *Lab) StartAgent(ctx context.Context, host string) error {
	h, err := l.host(host)
	if err != nil {
		return err
	}
	if p := readPID(l.path(host, "agent.pid")); p.Alive() {
		return fmt.Errorf("the agent of %s runs already (process %d)", host, p.PID)
	}
	p, err := l.launchAgent(h)
	if err != nil {
		return err
	}
	return l.finishAgent(ctx, h, p)
}

// StopAgent ends the agent of a host with sig; one that ignores SIGTERM is
// killed. A stopped agent is not an error.
func (l *Lab) StopAgent(ctx context.Context, host string, sig unix.Signal) error {
	if _, err := l.host(host); err != nil {
		return err
	}
	p := readPID(l.path(host, "agent.pid"))
	if err := p.stop(ctx, sig, stopGrace); err != nil {
		return fmt.Errorf("stop agent of %s: %w", host, err)
	}
	err := os.Remove(l.path(host, "agent.pid"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("stop agent of %s: %w", host, err)
	}
	return nil
}

func (l *Lab) waitDatastore(ctx context.Context, host string, p Process) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	at := netip.AddrPortFrom(l.hostPlan(host).Address4(), etcdPort)
	if strings.HasPrefix(l.etcdURL(host), "https:") { // it answers its own host without
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), etcdPort)
	}
	err := l.poll(ctx, p, func(ctx context.Context) bool {
		body, status, err := l.httpGet(ctx, host, at, "/health")
		return err == nil && status == http.StatusOK && body != ""
	})
	if err != nil {
		return fmt.Errorf("wait for the embedded etcd of %s at %s: %w%s", host, at, err, l.logTail(host, "agent"))
	}
	return nil
}

func (l *Lab) waitReady(ctx context.Context, host string, p Process) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := l.poll(ctx, p, func(ctx context.Context) bool { return l.Ready(ctx, host) })
	if err != nil {
		return fmt.Errorf("wait for the agent of %s to be ready: %w%s", host, err, l.logTail(host, "agent"))
	}
	return nil
}

// Ready asks the agent of a host for its readiness.
func (l *Lab) Ready(ctx context.Context, host string) bool {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), healthPort)
	_, status, err := l.httpGet(ctx, host, at, "/readiness")
	return err == nil && status/100 == 2
}

// poll asks done until it says yes, p ends, or ctx does.
func (l *Lab) poll(ctx context.Context, p Process, done func(context.Context) bool) error {
	for {
		if done(ctx) {
			return nil
		}
		if !p.Alive() {
			return errors.New("the process has ended")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}

// httpGet reads a small page from inside a member's network namespace.
func (l *Lab) httpGet(ctx context.Context, member string, at netip.AddrPort, path string) (string, int, error) {
	s, err := l.enter(member)
	if err != nil {
		return "", 0, err
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialInside(ctx, s, at)
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return string(body), resp.StatusCode, err
}

// dialInside opens a TCP connection from the thread's network namespace. A
// literal address makes the dialer open its socket on the calling thread.
func dialInside(ctx context.Context, s *space, at netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := s.do(func() error {
		d := net.Dialer{Timeout: time.Second, FallbackDelay: -1}
		var err error
		conn, err = d.DialContext(ctx, "tcp", at.String())
		return err
	})
	return conn, err
}

// AgentLog is the path of a host's agent log.
func (l *Lab) AgentLog(host string) (string, error) {
	if _, err := l.host(host); err != nil {
		return "", err
	}
	return l.path(host, "agent.log"), nil
}
