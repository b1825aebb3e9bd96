package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/ctl/bundle"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/ipam"
	"github.com/manekinet/maneki/resource"
)

const defaultLogDir = "/var/log/calico"

func (a *app) nodeDiagsCommand() *cobra.Command {
	var logDir string
	c := &cobra.Command{
		Use:   "diags",
		Short: "Collect what is needed to diagnose this host",
		Long: `Collect what is needed to diagnose this host into one file: routes, rules,
interfaces, firewall, the agent's status, logs. Nothing is sent anywhere; the file
names addresses and workloads, read it before you hand it on.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return exit.New(exit.Denied, "run the command as root", errors.New("Need super user privileges: Operation not permitted")) //nolint:staticcheck // calicoctl's wording
			}
			return a.nodeDiags(c.Context(), logDir)
		},
	}
	c.Flags().StringVar(&logDir, "log-dir", defaultLogDir, "directory of the logs")
	return c
}

func (a *app) nodeDiags(ctx context.Context, logDir string) error {
	fmt.Fprintln(a.Stdout, "Collecting diagnostics")
	dir, err := os.MkdirTemp("", "calico")
	if err != nil {
		return exit.New(exit.Input, "", fmt.Errorf("Error creating temp directory to dump logs: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	fmt.Fprintln(a.Stdout, "Using temp dir:", dir)
	items := a.hostItems("")
	const most = 1000
	logs, err := bundle.Logs("logs", logDir, most)
	if err != nil {
		fmt.Fprintf(a.Stdout, "Error copying log files: %v\n", err)
	} else if len(logs) > 0 {
		logs[0].Say = "Copying Calico logs"
	}
	path := filepath.Join(dir, fmt.Sprintf("diags-%s.tar.gz", a.Now().Format("20060102_150405")))
	if err := a.bundle(ctx, path, append(items, logs...), 1); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "\nDiags saved to %s\n", path)
	return nil
}

func (a *app) bundle(ctx context.Context, path string, items []bundle.Item, parallel int) error {
	say := func(text string) { fmt.Fprintln(a.Stdout, text) }
	if err := bundle.Write(ctx, path, a.Now(), items, parallel, say); err != nil {
		return fmt.Errorf("Error compressing the diagnostics: %w", err) //nolint:staticcheck // calicoctl's wording
	}
	return nil
}

// hostItems describe this host. since limits the journal; empty: all of it.
func (a *app) hostItems(since string) []bundle.Item {
	journal := []string{"journalctl", "--no-pager", "-n", "50000", "-u", "calico-node.service", "-u", "maneki.service"}
	if since != "" {
		journal = append(journal, "--since", "-"+since)
	}
	return []bundle.Item{
		bundle.Text("date", a.Now().Format(time.RFC3339)+"\n"),
		bundle.Text("version", fmt.Sprintf("%s %s %s\n", a.Name, orUnknown(a.Version), orUnknown(a.GitRevision))),
		bundle.File("hostname", "/proc/sys/kernel/hostname"),
		bundle.File("kernel", "/proc/version"),
		{Name: "status.json", Say: "Asking the agent", Collect: a.agentStatus},
		{Name: "checksystem", Say: "Checking the kernel", Collect: func(context.Context) ([]byte, error) {
			s, err := a.Inspect("")
			if err != nil {
				return nil, err
			}
			var out bytes.Buffer
			err = printSystem(&out, s)
			return out.Bytes(), err
		}},
		bundle.Command("netstat", "Dumping netstat", "ss", "-a", "-n"),
		bundle.Command("ipv4_route", "Dumping routes (IPv4)", "ip", "-4", "route", "show", "table", "all"),
		bundle.Command("ipv6_route", "Dumping routes (IPv6)", "ip", "-6", "route", "show", "table", "all"),
		bundle.Command("ipv4_rule", "", "ip", "-4", "rule"),
		bundle.Command("ipv6_rule", "", "ip", "-6", "rule"),
		bundle.Command("ipv4_addr", "Dumping interface info (IPv4)", "ip", "-d", "-4", "addr"),
		bundle.Command("ipv6_addr", "Dumping interface info (IPv6)", "ip", "-d", "-6", "addr"),
		bundle.Command("links", "", "ip", "-d", "-s", "link"),
		bundle.Command("neighbours", "", "ip", "neigh"),
		bundle.Command("fdb", "", "bridge", "fdb"),
		bundle.Command("nftables", "Dumping nftables", "nft", "list", "ruleset"),
		bundle.Command("ipv4_tables", "Dumping iptables (IPv4)", "iptables-save", "-c"),
		bundle.Command("ipv6_tables", "Dumping iptables (IPv6)", "ip6tables-save", "-c"),
		bundle.Command("ipsets", "Dumping ipsets", "ipset", "list"),
		bundle.File("proc_net_dev", "/proc/net/dev"),
		bundle.File("proc_net_snmp", "/proc/net/snmp"),
		bundle.File("proc_net_softnet_stat", "/proc/net/softnet_stat"),
		bundle.File("ip_forward", "/proc/sys/net/ipv4/ip_forward"),
		bundle.File("ipv6_forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"),
		bundle.Command("journal", "Copying the journal", journal...),
	}
}

func (a *app) agentStatus(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := a.Status(ctx, agentapi.DefaultSocket)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(s, "", "  ")
}

type clusterDiagsFlags struct {
	since              time.Duration
	maxLogs, parallel  int
	focus              []string
	outputDir, logDir  string
	skipTempDirCleanup bool
}

func (a *app) clusterCommand() *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Inspect the whole cluster"}
	group(c)
	var f clusterDiagsFlags
	diags := &cobra.Command{
		Use:   "diags",
		Short: "Collect what is needed to diagnose the cluster",
		Long: `Collect what is needed to diagnose the cluster into one file: every resource, IPAM
data and its check, by node what belongs to it, and the state and the newest logs
of this host. Other hosts are not logged in to: run 'node diags' there.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.maxLogs < 0 || f.parallel < 1 || f.since < 0 {
				return exit.New(exit.Usage, "use --max-logs 0 or more, --max-parallelism 1 or more, --since 0s or more", errors.New("a number is out of range"))
			}
			return a.withStore(c.Context(), func(ctx context.Context, store datastore.Store) error { return a.clusterDiags(ctx, store, f) })
		},
	}
	d := diags.Flags()
	d.DurationVar(&f.since, "since", 0, "only the journal of this last time, such as 5m or 3h; 0 for all of it")
	d.IntVar(&f.maxLogs, "max-logs", 5, "how many log files of this host to collect, the newest first")
	d.IntVar(&f.parallel, "max-parallelism", 10, "how many things to collect at the same time")
	d.StringSliceVar(&f.focus, "focus-nodes", nil, "collect by node only these, comma-separated")
	d.StringVar(&f.outputDir, "output-dir", ".", "directory for the file")
	d.StringVar(&f.logDir, "log-dir", defaultLogDir, "directory of the logs")
	d.BoolVar(&f.skipTempDirCleanup, "skip-temp-dir-cleanup", false, "accepted for calicoctl's sake; no temporary directory is needed")
	c.AddCommand(diags)
	return c
}

func (a *app) clusterDiags(ctx context.Context, store datastore.Store, f clusterDiagsFlags) error {
	fmt.Fprintln(a.Stdout, "==== Begin collecting diagnostics. ====")
	since := ""
	if f.since > 0 {
		since = fmt.Sprintf("%ds", int(f.since.Seconds()))
	}
	items := a.storeItems(store)
	nodes, err := a.nodeItems(ctx, store, f.focus)
	if err != nil {
		return err
	}
	items = append(items, nodes...)
	for _, i := range a.hostItems(since) {
		i.Name, i.Say = "host/"+i.Name, ""
		items = append(items, i)
	}
	logs, err := bundle.Logs("host/logs", f.logDir, f.maxLogs)
	if err != nil {
		fmt.Fprintf(a.Stdout, "Error copying log files: %v\n", err)
	}
	path := filepath.Join(f.outputDir, fmt.Sprintf("calico-diagnostics-%s.tar.gz", a.Now().Format("20060102_150405")))
	if err := a.bundle(ctx, path, append(items, logs...), f.parallel); err != nil {
		return exit.New(exit.Input, "", err)
	}
	fmt.Fprintf(a.Stdout, "==== Diagnostics collected. ====\nDiags saved to %s\n", path)
	return nil
}

// storeItems are what the datastore holds.
func (a *app) storeItems(store datastore.Store) []bundle.Item {
	client := resource.New(store, nil)
	var items []bundle.Item
	for _, k := range api.Kinds() {
		items = append(items, bundle.Item{Name: "resources/" + k.Plural + ".yaml", Say: "Collecting " + k.Plural, Collect: func(ctx context.Context) ([]byte, error) {
			objects, problems, err := client.List(ctx, k, "")
			if err != nil {
				return nil, err
			}
			text, err := yaml.Marshal(&List{Kind: k.Name + "List", APIVersion: api.GroupVersion, Items: objects})
			return text, errors.Join(append(problems, err)...)
		}})
	}
	return append(items,
		bundle.Item{Name: "ipam/data.json", Say: "Collecting IPAM data", Collect: func(ctx context.Context) ([]byte, error) {
			data, err := (&exporter{}).ipam(ctx, store)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(data, "", " ")
		}},
		bundle.Item{Name: "ipam/check", Collect: func(ctx context.Context) ([]byte, error) {
			var out bytes.Buffer
			quiet := *a
			quiet.Stdout = &out
			err := quiet.ipamCheck(ctx, store, ipam.New(store, ipam.Options{Now: a.Now}), ipamCheckFlags{problems: true})
			return out.Bytes(), err
		}},
	)
}

// nodeItems are, by node, what belongs to it.
func (a *app) nodeItems(ctx context.Context, store datastore.Store, focus []string) ([]bundle.Item, error) {
	nodes, _, _, err := datastore.For[api.Node](store).List(ctx, "")
	if err != nil {
		return nil, a.describe("get", "Node", err)
	}
	weps, _, _, err := datastore.For[api.WorkloadEndpoint](store).List(ctx, "")
	if err != nil {
		return nil, a.describe("get", "WorkloadEndpoint", err)
	}
	for _, name := range focus {
		if !slices.ContainsFunc(nodes, func(n *api.Node) bool { return n.Name == name }) {
			return nil, exit.New(exit.NotFound, fmt.Sprintf("'%s get nodes' lists what there is", a.Name), fmt.Errorf("resource does not exist: %s with error: <nil>", identifier("Node", "", name)))
		}
	}
	var items []bundle.Item
	for _, n := range nodes {
		if len(focus) > 0 && !slices.Contains(focus, n.Name) {
			continue
		}
		objects := []api.Object{n}
		for _, w := range weps {
			if w.Spec.Node == n.Name {
				objects = append(objects, w)
			}
		}
		items = append(items, bundle.Item{Name: "nodes/" + n.Name + ".yaml", Collect: func(context.Context) ([]byte, error) {
			return yaml.Marshal(objects)
		}})
	}
	return items, nil
}
