package agentcmd

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/manekinet/maneki/agent"
	"github.com/manekinet/maneki/exit"
)

// containerName is the name of the agent's container.
const containerName = "maneki-node"

// startedLine is what the agent prints when containers can be attached.
const startedLine = "Maneki node started successfully"

// startTime is how long the container may take for that.
const startTime = 60 * time.Second

func image(version string) string { return "maneki/node:" + version }

// ownFlag reports that a flag is for this command and not for the agent in the container, or is given there otherwise.
func ownFlag(name string) bool {
	return slices.Contains([]string{"container", "node-image", "init-system", "log-dir", "dryrun", "name", "config"}, name)
}

// runContainer is --container: what calicoctl's node run did (spec/calico.md §7).
func (f *flags) runContainer(c *cobra.Command, o agent.Options, version string) error {
	run := f.dockerRun(c, o, version, os.Environ(), func(path string) bool { _, err := os.Stat(path); return err == nil })
	out := c.OutOrStdout()
	fmt.Fprintf(out, "Running command to start the node:\n\n%s\n\n", shellWords(run))
	if f.dryRun {
		return nil
	}
	docker, err := exec.LookPath(run[0])
	if err != nil {
		return exit.New(exit.General, "install Docker, or run the agent without --container", err)
	}
	// A container of that name is an agent from before; there may be none.
	_ = exec.CommandContext(c.Context(), docker, "rm", "-f", containerName).Run()
	start := exec.CommandContext(c.Context(), docker, run[1:]...)
	start.Stderr = c.ErrOrStderr()
	if f.init {
		start.Stdout = out
	}
	if err := start.Run(); err != nil {
		return exit.New(exit.General, "see the line above", fmt.Errorf("docker run: %w", err))
	}
	if f.init {
		return nil
	}
	return awaitStart(c.Context(), docker, out)
}

// awaitStart shows the container's log until the node has started.
func awaitStart(ctx context.Context, docker string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	logs := exec.CommandContext(ctx, docker, "logs", "-f", containerName)
	logs.WaitDelay = time.Second
	r, w := io.Pipe()
	logs.Stdout, logs.Stderr = w, w
	if err := logs.Start(); err != nil {
		return fmt.Errorf("read the container's log: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(logs.Wait(), w.Close()) }()
	started := false
	for lines := bufio.NewScanner(r); !started && lines.Scan(); {
		fmt.Fprintln(out, lines.Text())
		started = lines.Text() == startedLine
	}
	cancel()
	_ = r.Close()
	err := <-ended
	if started {
		return nil
	}
	return exit.New(exit.NotRunning, "see its log: docker logs "+containerName, fmt.Errorf("the node has not started: %w", cmp.Or(err, errors.New("the container has ended"))))
}

// dockerRun is the command line. The container is the host as far as networks and processes go: the agent makes
// interfaces, and finds dockerd's configuration and containers' namespaces by their processes.
func (f *flags) dockerRun(c *cobra.Command, o agent.Options, version string, environ []string, exists func(path string) bool) []string {
	run := []string{"docker", "run", "--net=host", "--pid=host", "--privileged", "--name=" + containerName}
	if f.init {
		run = append(run, "--rm")
	} else {
		run = append(run, "-d", "--restart=always")
	}
	run = append(run, "-e", "NODENAME="+nodeName(f, o))
	for _, e := range slices.Sorted(slices.Values(environ)) {
		if name, _, _ := strings.Cut(e, "="); forAgent(name) {
			if secret(name) {
				e = name // docker takes the value from its environment
			}
			run = append(run, "-e", e)
		}
	}
	for _, dir := range []string{
		cmp.Or(f.runDir, agent.DefaultRunDir), cmp.Or(f.stateDir, agent.DefaultStateDir), "/var/lib/calico", "/run/docker/plugins", "/var/run/docker.sock",
	} {
		run = append(run, "-v", dir+":"+dir)
	}
	d := o.Datastore
	for _, file := range []string{f.configFile(c), "/etc/maneki", d.EtcdCACertFile, d.EtcdCertFile, d.EtcdKeyFile} {
		if file != "" && exists(file) {
			run = append(run, "-v", file+":"+file+":ro")
		}
	}
	run = append(run, cmp.Or(f.image, image(version)), "node", "run")
	if file := f.configFile(c); file != "" && exists(file) {
		run = append(run, "--config="+file)
	}
	c.Flags().Visit(func(p *pflag.Flag) {
		if !ownFlag(p.Name) {
			run = append(run, flagWords(p)...)
		}
	})
	return run
}

// flagWords gives a flag as it was given.
func flagWords(p *pflag.Flag) []string {
	if list, ok := p.Value.(pflag.SliceValue); ok {
		var out []string
		for _, v := range list.GetSlice() {
			out = append(out, "--"+p.Name+"="+v)
		}
		return out
	}
	return []string{"--" + p.Name + "=" + strings.Trim(p.Value.String(), "[]")} // brackets are those of key=value lists
}

func (f *flags) configFile(c *cobra.Command) string {
	if p := c.Flag("config"); p != nil {
		return p.Value.String()
	}
	return ""
}

func nodeName(f *flags, o agent.Options) string {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return cmp.Or(f.name, o.Node, strings.ToLower(host))
}

// forAgent reports that the agent reads a variable of the environment. NODENAME is given in any case.
func forAgent(name string) bool {
	for _, prefix := range []string{"ETCD_", "CALICO_", "FELIX_", "DATASTORE_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{
		"WAIT_FOR_DATASTORE", "IP", "IP6", "IP_AUTODETECTION_METHOD", "IP6_AUTODETECTION_METHOD", "DISABLE_NODE_IP_CHECK", "AS",
		"NO_DEFAULT_POOLS", "AUTODETECT_POLL_INTERVAL",
	}, name)
}

// secret reports that a variable's value is not to be shown.
func secret(name string) bool {
	return strings.HasSuffix(name, "PASSWORD") || strings.HasSuffix(name, "_KEY") || strings.HasSuffix(name, "TOKEN")
}

// shellWords prints a command so that a shell reads the same words.
func shellWords(words []string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=:/.,@%+"
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if w == "" || strings.Trim(w, plain) != "" {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}
