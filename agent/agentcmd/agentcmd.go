// Package agentcmd is the verb `maneki node run`: it turns flags, environment
// and configuration file into agent.Options and runs the agent.
package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agent"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/exit"
)

// flags are what a person can type; empty means: environment or default.
type flags struct {
	name, ip, ip6, method, method6, as, backend string
	logLevel, logFormat                         string
	health, metrics, paths                      string
	stateDir, runDir                            string
	etcdListen, etcdPeers, join                 []string
	noPools                                     bool
	docker, dockerScope                         string
	labels                                      map[string]string

	container   bool
	image       string
	init        bool   // --container in the foreground
	logDir      string // accepted for calicoctl's sake: the log is the container's
	felixConfig string // accepted for calicoctl's sake, too
	dryRun      bool
}

// Run returns the command `run`, to be mounted below `node`.
func Run(version string) *cobra.Command {
	f := &flags{}
	return f.command(version, func(c *cobra.Command) error { return f.run(c, version) })
}

func (f *flags) command(version string, run func(*cobra.Command) error) *cobra.Command {
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent of this host in the foreground",
		Long: `Run the agent of this host in the foreground.

The datastore is named by --config or by the environment (ETCD_ENDPOINTS, ...).
Where none is named, this host keeps it in an embedded etcd; --etcd-listen lets
other hosts use it. With --join this host becomes a member of the cluster of
embedded etcds to which the URL leads; three members survive the loss of one.
The command may be repeated: a member comes back as the member that it is.

MANEKI_ETCD_LISTEN, MANEKI_ETCD_PEER and MANEKI_JOIN stand in for the flags.

With ETCD_CERT_FILE, ETCD_KEY_FILE and ETCD_CA_CERT_FILE set, the URLs of the
embedded etcd are https, and whoever connects must show a certificate of that CA.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return run(c) },
	}
	p := c.Flags()
	p.StringVar(&f.name, "name", "", "name of this node (default: NODENAME, HOSTNAME, the host's name)")
	p.StringVar(&f.ip, "ip", "", "IPv4 address to be known by: an address, autodetect or none")
	p.StringVar(&f.ip6, "ip6", "", "IPv6 address to be known by: an address, autodetect or none")
	p.StringVar(&f.method, "ip-autodetection-method", "", "first-found, can-reach=DEST, interface=REGEX, skip-interface=REGEX or cidr=CIDR")
	p.StringVar(&f.method6, "ip6-autodetection-method", "", "the same for IPv6")
	p.StringVar(&f.as, "as", "", "AS number of this node (default: the cluster's, 64512)")
	p.StringVar(&f.backend, "backend", "", "bird (BGP, by our own speaker) or none")
	p.BoolVar(&f.noPools, "no-default-ippools", false, "do not create pools in an empty datastore")
	p.StringToStringVar(&f.labels, "label", nil, "label of this node, key=value (repeat for more)")
	p.StringSliceVar(&f.etcdListen, "etcd-listen", nil, "URL on which the embedded etcd serves other hosts, e.g. http://192.168.1.1:2379")
	p.StringSliceVar(&f.etcdPeers, "etcd-peer", nil, "URL on which it serves the other members (default: the address of --etcd-listen, port 2380)")
	p.StringSliceVar(&f.join, "join", nil, "keep the datastore too, as a member of the cluster of which a host serves this URL, e.g. http://192.168.1.1:2379")
	p.StringVar(&f.stateDir, "state-dir", "", "directory of what must survive a reboot (default /var/lib/maneki)")
	p.StringVar(&f.runDir, "run-dir", "", "directory of the sockets (default /run/maneki)")
	p.StringVar(&f.health, "health-addr", "", `address of /liveness and /readiness (default 127.0.0.1:9099; "-" for none)`)
	p.StringVar(&f.metrics, "metrics-addr", "", `address of /metrics (default 127.0.0.1:9091; "-" for none)`)
	p.StringVar(&f.paths, "path-probe-port", "", `UDP port by which the paths to other hosts are measured (default 9097; "-" measures nothing)`)
	p.StringVar(&f.docker, "docker", "", "serve Docker's network and IPAM drivers: auto (where Docker's directories are), on or off")
	p.StringVar(&f.dockerScope, "docker-scope", "", "scope of Docker networks: auto (global where dockerd has a cluster store), local or global")
	p.StringVar(&f.logFormat, "log-format", "text", "text or json")
	p.BoolVar(&f.container, "container", false, "run the agent as a Docker container: print the docker run line, execute it, wait until the node has started")
	p.StringVar(&f.image, "node-image", "", "image for --container (default "+image(version)+"); without --container it is not used")
	p.BoolVar(&f.init, "init-system", false, "with --container: stay in the foreground, for an init system that restarts it")
	p.StringVar(&f.logDir, "log-dir", "", "accepted and not used: the agent logs to stderr")
	p.BoolVar(&f.dryRun, "dryrun", false, "say what would be run and stop")
	p.StringVar(&f.felixConfig, "felix-config", "", "accepted and not used: FelixConfiguration and the FELIX_ variables say it")
	for _, name := range []string{"log-dir", "felix-config"} {
		if err := p.MarkHidden(name); err != nil {
			panic(err) // the names stand a few lines above
		}
	}
	return c
}

func (f *flags) run(c *cobra.Command, version string) error {
	opts, warnings, err := f.options(c, version)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		opts.Log.Warn(w)
	}
	if f.container {
		return f.runContainer(c, opts, version)
	}
	if f.dryRun {
		return plan(c.OutOrStdout(), opts)
	}
	ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return class(agent.Run(ctx, opts))
}

// plan is --dryrun: what the agent would be told.
func plan(w io.Writer, o agent.Options) error {
	store := o.Datastore.String()
	if o.Datastore.Type == "" {
		store = "embedded etcd"
		if len(o.Join) > 0 {
			store += ", joining " + strings.Join(o.Join, ", ")
		}
	}
	_, err := fmt.Fprintf(w, "node name:  %s\ndatastore:  %s\nIPv4:       %s %s\nIPv6:       %s %s\n", o.Node, store, o.IP, o.Method, o.IP6, o.Method6)
	return err
}

// options merges environment, file and flags; flags win.
func (f *flags) options(c *cobra.Command, version string) (agent.Options, []string, error) {
	o, err := agent.FromEnv(os.Getenv)
	if err != nil {
		return o, nil, exit.New(exit.Input, "", err)
	}
	path := ""
	if p := c.Flag("config"); p != nil {
		path = p.Value.String()
	}
	var warnings []string
	if o.Datastore, warnings, err = config.Load(path, os.Getenv); err != nil {
		return o, nil, exit.New(exit.Input, "", err)
	}
	// The global --log-level is silent by default, which is right for a command and wrong for an agent.
	f.logLevel = "info"
	if p := c.Flag("log-level"); p != nil && p.Changed {
		f.logLevel = p.Value.String()
	}
	if o.Log, err = f.logger(c.ErrOrStderr()); err != nil {
		return o, nil, err
	}
	for _, s := range []struct {
		to   *string
		flag string
	}{
		{&o.Node, f.name},
		{&o.IP, f.ip},
		{&o.IP6, f.ip6},
		{&o.Method, f.method},
		{&o.Method6, f.method6},
		{&o.StateDir, f.stateDir},
		{&o.RunDir, f.runDir},
		{&o.HealthAddr, f.health},
		{&o.MetricsAddr, f.metrics},
		{&o.PathPort, f.paths},
		{&o.Docker, f.docker},
		{&o.DockerScope, f.dockerScope},
	} {
		if s.flag != "" {
			*s.to = s.flag
		}
	}
	if f.as != "" {
		if o.ASNumber, err = agent.ParseASN(f.as); err != nil {
			return o, nil, exit.New(exit.Usage, "give --as a number from 1 to 4294967295", err)
		}
	}
	if o.BGP, err = f.bgp(o.BGP); err != nil {
		return o, nil, err
	}
	out := c.OutOrStdout()
	o.Version, o.Labels = version, f.labels
	for _, l := range []struct {
		to    *[]string
		given []string
	}{{&o.EtcdListen, f.etcdListen}, {&o.EtcdPeers, f.etcdPeers}, {&o.Join, f.join}} {
		if len(l.given) > 0 {
			*l.to = l.given
		}
	}
	o.NoDefaultPools = o.NoDefaultPools || f.noPools
	o.Notice = func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	return o, warnings, nil
}

func (f *flags) bgp(byEnv bool) (bool, error) {
	switch f.backend {
	case "":
		return byEnv, nil
	case "bird", "bgp":
		return true, nil
	case "none":
		return false, nil
	}
	return false, exit.New(exit.Usage, "use bird or none", fmt.Errorf("unknown backend %q", f.backend))
}

func (f *flags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, exit.New(exit.Usage, "use error, warn, info or debug", fmt.Errorf("unknown log level %q", f.logLevel))
	}
	o := &slog.HandlerOptions{Level: level}
	switch strings.ToLower(f.logFormat) {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, exit.New(exit.Usage, "use text or json", fmt.Errorf("unknown log format %q", f.logFormat))
}

// class gives an agent's error its exit code.
func class(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, agent.ErrRootNeeded):
		return exit.New(exit.Denied, "use sudo", err)
	case errors.Is(err, agent.ErrBusy), errors.Is(err, syscall.EADDRINUSE):
		return exit.New(exit.Busy, "", err)
	case errors.Is(err, embedded.ErrMembership):
		return exit.New(exit.Conflict, "", err)
	case errors.Is(err, agent.ErrBadOption):
		return exit.New(exit.Input, "", err)
	case errors.Is(err, datastore.ErrUnavailable):
		return exit.New(exit.Unreachable, "set WAIT_FOR_DATASTORE=true to wait for it", err)
	}
	return err
}
