package agent

import (
	"context"
	"errors"
	"os"

	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/endpoint"
)

// The values of Options.Docker: auto serves Docker where there are signs of it.
const (
	DockerAuto = "auto"
	DockerOn   = "on"
	DockerOff  = "off"
)

// dockerSigns are directories that a host with Docker has.
func dockerSigns() []string { return []string{docker.DefaultPluginDir, "/etc/docker"} }

// listenDocker opens the sockets of the Docker drivers, nil when they are not wanted. A host whose Docker cannot be
// served still serves everything else, unless Docker was asked for by name.
func (a *Agent) listenDocker(eps *endpoint.Manager) (*docker.Server, error) {
	if !a.opts.wantsDocker() {
		return nil, nil
	}
	log := a.opts.Log.With("part", "docker")
	s, err := docker.Listen(docker.Config{
		Endpoints: eps, IPAM: eps.IPAM, Store: a.store, Node: a.opts.Node, NodeLabels: a.node.labels,
		StateDir: a.opts.StateDir, Log: log, Scope: docker.Scope(a.opts.DockerScope),
	})
	if err != nil && a.opts.Docker == DockerAuto {
		log.Warn("Docker is not served on this host; --docker=off says that this is wanted", "err", err)
		return nil, nil
	}
	return s, err
}

func (o *Options) wantsDocker() bool {
	if o.Docker != DockerAuto {
		return o.Docker == DockerOn
	}
	for _, dir := range dockerSigns() {
		if _, err := os.Stat(dir); err == nil {
			return true
		}
	}
	return false
}

// serveDocker serves until ctx is done; in auto mode a failure is only logged.
func (a *Agent) serveDocker(ctx context.Context, s *docker.Server) error {
	err := s.Serve(ctx)
	if err != nil && !errors.Is(err, context.Canceled) && a.opts.Docker == DockerAuto {
		a.opts.Log.Error("Docker is no longer served on this host", "err", err)
		return nil
	}
	return err
}
