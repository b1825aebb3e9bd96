package agent

import (
	"context"
	"errors"
	"os"

	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/docker/resolver"
	"github.com/manekinet/maneki/endpoint"
)

// The values of Options.Docker: auto serves Docker where there are signs of it.
const (
	DockerAuto = "auto"
	DockerOn   = "on"
	DockerOff  = "off"
)

// dockerSigns are files that a host with Docker has. The first directory appears only when dockerd runs, and the agent
// should be there before it.
func dockerSigns() []string {
	return []string{docker.DefaultPluginDir, "/etc/docker", "/var/lib/docker", "/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"}
}

// listenDocker opens the sockets of the Docker drivers, nil when they are not wanted. A host whose Docker cannot be
// served still serves everything else, unless Docker was asked for by name.
func (o *Options) listenDocker() (*docker.Server, error) {
	if !o.wantsDocker() {
		return nil, nil
	}
	log := o.Log.With("part", "docker")
	s, err := docker.Listen(docker.Config{StateDir: o.StateDir, Log: log, Scope: docker.Scope(o.DockerScope)})
	if err != nil && o.Docker == DockerAuto {
		log.Warn("Docker is not served on this host; --docker=off says that this is wanted", "err", err)
		return nil, nil
	}
	return s, err
}

func (o *Options) wantsDocker() bool {
	if o.Docker != DockerAuto {
		return o.Docker == DockerOn
	}
	for _, path := range dockerSigns() {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// openDocker lets containers in.
func (a *Agent) openDocker(eps *endpoint.Manager) {
	if a.docker != nil {
		a.docker.Open(docker.Backend{Endpoints: eps, IPAM: eps.IPAM, Store: a.store, Node: a.opts.Node, NodeLabels: a.node.labels})
	}
}

// serveDocker serves until ctx is done; in auto mode a failure is only logged.
func (a *Agent) serveDocker(ctx context.Context) error {
	if a.docker == nil {
		return nil
	}
	err := a.docker.Serve(ctx)
	if err != nil && !errors.Is(err, context.Canceled) && a.opts.Docker == DockerAuto {
		a.opts.Log.Error("Docker is no longer served on this host", "err", err)
		return nil
	}
	return err
}

// serveNames is the name server for containers. A host where another program has its port goes without.
func (a *Agent) serveNames(ctx context.Context) error {
	if a.names == nil {
		return nil
	}
	s, err := resolver.Listen(ctx, resolver.Config{Directory: a.names, Log: a.opts.Log.With("part", "names")})
	if err != nil {
		a.opts.Log.Warn("containers find those of other hosts by address only", "err", err)
		return nil
	}
	return s.Serve(ctx)
}
