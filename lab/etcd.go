package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// etcdTimeout is how long an external cluster may take to elect its leader.
const etcdTimeout = 30 * time.Second

// startEtcd starts the external cluster, one real etcd per listed host, and
// waits until every member serves. With the embedded etcd there is nothing to
// do: the first agent runs it.
func (l *Lab) startEtcd(ctx context.Context) error {
	t := l.cfg.Topology
	if t.Etcd.Mode != EtcdExternal {
		return nil
	}
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return fmt.Errorf("start etcd: %w (install the package etcd-server, or etcd on older systems)", err)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, host := range t.Etcd.Hosts {
		l.cfg.Step("etcd " + host)
		p, err := l.startDaemon(host, "etcd", binary, l.etcdArgs(host), nil)
		if err != nil {
			return err
		}
		group.Go(func() error { return l.waitEtcd(ctx, host, p) })
	}
	return group.Wait()
}

func (l *Lab) etcdArgs(host string) []string {
	var cluster []string
	for _, h := range l.cfg.Topology.Etcd.Hosts {
		cluster = append(cluster, fmt.Sprintf("%s=%s", h, l.peerURL(h)))
	}
	return append([]string{
		"--name", host,
		"--data-dir", "/var/lib/etcd/" + host,
		"--listen-client-urls", fmt.Sprintf("%s,http://127.0.0.1:%d", l.etcdURL(host), etcdPort),
		"--advertise-client-urls", l.etcdURL(host),
		"--listen-peer-urls", l.peerURL(host),
		"--initial-advertise-peer-urls", l.peerURL(host),
		"--initial-cluster", strings.Join(cluster, ","),
		"--initial-cluster-state", "new",
		"--initial-cluster-token", l.cfg.Name,
	}, l.cfg.Topology.Etcd.Args...)
}

func (l *Lab) peerURL(host string) string {
	return fmt.Sprintf("http://%s:%d", l.hostPlan(host).Address4(), etcdPeerPort)
}

func (l *Lab) waitEtcd(ctx context.Context, host string, p Process) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	at := netip.AddrPortFrom(l.hostPlan(host).Address4(), etcdPort)
	err := l.poll(ctx, p, func(ctx context.Context) bool {
		body, status, err := l.httpGet(ctx, host, at, "/health")
		return err == nil && status == 200 && strings.Contains(body, `"true"`)
	})
	if err != nil {
		return fmt.Errorf("start etcd on %s: %w%s", host, err, l.logTail(host, "etcd"))
	}
	return nil
}

// startDaemon starts a lasting process in a host's namespaces, with its output
// in STATE/HOST/NAME.log and its identity in STATE/HOST/NAME.pid.
func (l *Lab) startDaemon(host, name, binary string, args []string, env []string) (Process, error) {
	s, err := l.enter(host)
	if err != nil {
		return Process{}, err
	}
	logFile, err := os.OpenFile(l.path(host, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Process{}, fmt.Errorf("start %s on %s: %w", name, host, err)
	}
	defer logFile.Close()
	cmd := l.command(host, binary, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	p, err := l.start(s, cmd, l.path(host, name+".pid"))
	if err != nil {
		return p, fmt.Errorf("start %s on %s: %w%s", name, host, err, l.logTail(host, name))
	}
	return p, nil
}

// logTail returns the last lines of a daemon's log for an error message.
func (l *Lab) logTail(host, name string) string {
	raw, err := os.ReadFile(l.path(host, name+".log"))
	if err != nil || len(raw) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return "\n  " + name + " said:\n    " + strings.Join(lines, "\n    ")
}
