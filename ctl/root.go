package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

// Options is what the command line is built from. The zero value is the real
// program called maneki; tests put other things in the place of the world.
type Options struct {
	Name        string // as ProgramName gives it; empty means "maneki"
	Version     string
	GitRevision string

	Stdin  io.Reader // nil means the process's own
	Stdout io.Writer
	Stderr io.Writer

	Environ   func(string) string // nil means os.Getenv
	OpenStore func(ctx context.Context, c config.Config, log *slog.Logger) (datastore.Store, error)
	Status    func(ctx context.Context, socket string) (*agentapi.Status, error)
	Inspect   func(kernelConfig string) (*System, error) // what checksystem reports on
	Now       func() time.Time

	Commands     []*cobra.Command // further verbs: lab, cni, ...
	NodeCommands []*cobra.Command // further verbs below node: run, ...
}

// app is one run of the command line.
type app struct {
	Options
	configPath string
	logLevel   string
	context    string
}

// ProgramName is the name under which the executable at argv0 acts.
func ProgramName(argv0 string) string {
	switch base := filepath.Base(argv0); base {
	case "calicoctl":
		return base
	case "kubectl-calico", "kubectl-maneki":
		// kubectl runs its plugins under these names; people type a space.
		return strings.Replace(base, "-", " ", 1)
	}
	return "maneki"
}

// compatible reports whether calicoctl's conventions hold instead of ours.
func (a *app) compatible() bool { return strings.Contains(a.Name, "calico") }

// Root returns the command tree. Run it with Execute, or add it to another one
// and pass its errors to ExitCode.
func Root(o Options) *cobra.Command {
	_, root := newApp(o)
	return root
}

func newApp(o Options) (*app, *cobra.Command) {
	a := &app{Options: o.withDefaults()}
	root := &cobra.Command{
		Use:           strings.Fields(a.Name)[0],
		Short:         "Run and inspect a layer-3 container network",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: a.Name},
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	group(root)
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if before := c.Flags().Args(); c.HasSubCommands() && len(before) > 0 {
			return unknownCommand(c, before[0]) // its flags are unknown because it is
		}
		return exit.New(exit.Usage, fmt.Sprintf("see '%s --help'", c.CommandPath()), err)
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.configPath, "config", "c", config.DefaultPath, "file that names the datastore (CalicoAPIConfig, YAML or JSON); the environment is used when it is not there")
	f.StringVarP(&a.logLevel, "log-level", "l", "panic", "what to log to stderr: panic, fatal, error, warn, info or debug")
	f.StringVar(&a.context, "context", "", "kubeconfig context to use")
	f.Bool("allow-version-mismatch", false, "accepted for calicoctl's sake; versions are never refused")
	root.AddCommand(
		a.getCommand(), a.createCommand(), a.applyCommand(), a.replaceCommand(), a.deleteCommand(), a.validateCommand(),
		a.patchCommand(), a.labelCommand(), a.diffCommand(), a.convertCommand(),
		a.nodeCommand(), a.bgpCommand(), a.ipamCommand(), a.datastoreCommand(), a.clusterCommand(), a.traceCommand(), a.versionCommand(),
		a.explainCommand(), a.dropsCommand(), a.flowsCommand(), a.policyCommand(),
	)
	if err := a.registerCompletions(root); err != nil {
		panic(err) // a flag was given two completions
	}
	root.AddCommand(a.Commands...)
	wrapArgs(root)
	return a, root
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "maneki"
	}
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Environ == nil {
		o.Environ = os.Getenv
	}
	if o.OpenStore == nil {
		o.OpenStore = openReachable
	}
	if o.Status == nil {
		o.Status = func(ctx context.Context, socket string) (*agentapi.Status, error) {
			return agentapi.NewClient(socket).Status(ctx)
		}
	}
	if o.Inspect == nil {
		o.Inspect = inspect
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// openReachable opens the datastore and fails soon when nobody listens there. The
// members that this host's agent has met stand in for those configured.
func openReachable(ctx context.Context, c config.Config, log *slog.Logger) (datastore.Store, error) {
	err := config.Reach(ctx, c)
	if others, _ := config.Known(config.KnownFile, c.EtcdEndpoints); err != nil && c.Type == config.EtcdV3 && len(others) > 0 {
		stand := c
		stand.EtcdEndpoints = others
		if config.Reach(ctx, stand) == nil {
			c, err = stand, nil
		}
	}
	store, openErr := config.Open(ctx, c, log)
	if openErr != nil {
		return nil, openErr // what is wrong with the configuration comes first
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// Execute runs the command line with args (without the program's name), prints
// its error and returns the exit code.
func Execute(ctx context.Context, o Options, args []string) int {
	a, root := newApp(o)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return int(exit.OK)
	}
	fmt.Fprintln(a.Stderr, strings.TrimRight(err.Error(), "\n"))
	if a.compatible() {
		return int(exit.General)
	}
	return ExitCode(err)
}

// ExitCode is the exit code for an error of any command: the one it carries,
// else the one of its class.
func ExitCode(err error) int {
	if code := exit.CodeOf(err); code != exit.General {
		return int(code)
	}
	return int(classify(err))
}

// group makes c a command that only has sub-commands: without one it prints its
// help, with an unknown one it fails.
func group(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return unknownCommand(c, args[0])
	}
}

func unknownCommand(c *cobra.Command, word string) error {
	remedy := fmt.Sprintf("see '%s --help'", c.CommandPath())
	if near := c.SuggestionsFor(word); len(near) > 0 {
		remedy = fmt.Sprintf("did you mean '%s %s'?", c.CommandPath(), near[0])
	}
	return exit.New(exit.Usage, remedy, fmt.Errorf("unknown command %q for %q", word, c.CommandPath()))
}

// wrapArgs gives the errors of cobra's argument checks, in the whole tree, the
// class Usage.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			return exit.New(exit.Usage, fmt.Sprintf("see '%s --help'", c.CommandPath()), check(c, args))
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// silent is above every level that is logged: calicoctl's default, "panic".
const silent = slog.Level(100)

func (a *app) logger() (*slog.Logger, error) {
	levels := map[string]slog.Level{
		"panic": silent, "fatal": silent, "error": slog.LevelError,
		"warn": slog.LevelWarn, "warning": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug,
	}
	level, ok := levels[strings.ToLower(a.logLevel)]
	if !ok {
		return nil, exit.New(exit.Usage, "use panic, fatal, error, warn, info or debug", fmt.Errorf("unknown log level %q", a.logLevel))
	}
	return slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: level})), nil
}

// openAny is openStore for a command that finds out itself what the datastore
// answers.
func (a *app) openAny(ctx context.Context) (datastore.Store, error) {
	store, _, err := a.open(ctx, func(context.Context, datastore.Store) error { return nil })
	return store, err
}

// openStore connects to the datastore that file or environment name.
func (a *app) openStore(ctx context.Context) (datastore.Store, *slog.Logger, error) {
	return a.open(ctx, answers)
}

func (a *app) open(ctx context.Context, check func(context.Context, datastore.Store) error) (datastore.Store, *slog.Logger, error) {
	log, err := a.logger()
	if err != nil {
		return nil, nil, err
	}
	c, warnings, err := config.Load(a.configPath, a.Environ)
	if err != nil {
		return nil, nil, exit.New(exit.Input, "", err)
	}
	for _, w := range warnings {
		a.warn(w)
	}
	if a.context != "" {
		c.Kube.CurrentContext = a.context
	}
	store, err := a.OpenStore(ctx, c, log)
	if errors.Is(err, config.ErrKubernetes) {
		return nil, nil, exit.New(exit.General, "", err)
	}
	if err != nil && classify(err) == exit.General {
		return nil, nil, exit.New(exit.Input, "", err)
	}
	if err == nil {
		err = check(ctx, store)
	}
	if err != nil {
		return nil, nil, a.storeError(c, err)
	}
	return store, log, nil
}

// answers asks the store something, so that a datastore that does not answer is
// one error with one remedy, whatever the verb.
func answers(ctx context.Context, s datastore.Store) error {
	_, err := s.Get(ctx, datastore.Key{Kind: "ClusterInformation", Name: "default"})
	if err == nil || errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	return errors.Join(err, s.Close())
}

func (a *app) storeError(c config.Config, err error) error {
	switch {
	case errors.Is(err, datastore.ErrUnavailable) && c.Type == config.Unnamed:
		return exit.New(exit.Unreachable, fmt.Sprintf("start this host's agent with '%s node run', or name an etcd with ETCD_ENDPOINTS or -c FILE", a.Name),
			fmt.Errorf("no datastore named, and the default one does not answer: %w", err))
	case errors.Is(err, datastore.ErrUnavailable):
		return exit.New(exit.Unreachable, "check that it runs and that "+c.Source+" names the right endpoints", err)
	case errors.Is(err, datastore.ErrDenied):
		return exit.New(exit.Denied, "check user, password and certificates in "+c.Source, err)
	}
	return err
}

func (a *app) warn(text string) { fmt.Fprintln(a.Stderr, "Warning:", text) }
