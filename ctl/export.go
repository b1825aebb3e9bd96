package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/ipam"
	"github.com/manekinet/maneki/resource"
)

// exportSeparator stands alone in a line between the three parts of an export:
// resources as YAML, ClusterInformation and IPAM data as JSON.
const exportSeparator = "===\n"

// ipamExport is the third part, in Calico's form.
type ipamExport struct {
	Affinities []ipamPair `json:"block_affinities,omitempty"`
	Blocks     []ipamPair `json:"blocks,omitempty"`
	Handles    []ipamPair `json:"handles,omitempty"`
	Config     *ipamPair  `json:"config,omitempty"`
}

// ipamPair is one value with its key in etcd's layout.
type ipamPair struct {
	Key   string
	Value json.RawMessage
	TTL   int64 // nanoseconds, always 0
}

// exportFirst lists the kinds that must come before others that name them, or
// that Calico's export begins with; the rest follows in the order of the manual.
func exportFirst() []string {
	return []string{
		"IPPool", "BGPPeer", "Tier", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "GlobalNetworkSet", "HostEndpoint",
		"KubeControllersConfiguration", "NetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "NetworkSet",
		"Node", "BGPConfiguration", "FelixConfiguration", "IPReservation", "BGPFilter",
	}
}

// exportedKinds are the kinds of an export. Views of IPAM data are in its own
// part; what the agents report is made anew. all adds the kinds that Kubernetes
// provides itself.
func exportedKinds(all bool) []api.Kind {
	left := []string{"ClusterInformation", "BlockAffinity", "IPAMConfiguration", "IPAMConfig", "CalicoNodeStatus"}
	if !all {
		left = append(left, "WorkloadEndpoint", "Profile")
	}
	kinds := slices.DeleteFunc(api.Kinds(), func(k api.Kind) bool { return slices.Contains(left, k.Name) })
	first := exportFirst()
	rank := func(k api.Kind) int {
		if i := slices.Index(first, k.Name); i >= 0 {
			return i
		}
		return len(first)
	}
	slices.SortStableFunc(kinds, func(a, b api.Kind) int { return rank(a) - rank(b) })
	return kinds
}

func (a *app) exportCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "export",
		Short: "Print the contents of the datastore",
		Long: `Print the contents of the datastore for 'datastore migrate import'. It must be
locked.

What is printed is for a cluster of Kubernetes, as Calico's export: nodes have the
names that Kubernetes knows them by, and WorkloadEndpoints, Profiles and the
policies of Kubernetes are left out, because it makes them anew. With --all
everything is printed as it is, for another etcd.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(c.Context(), func(ctx context.Context, store datastore.Store) error {
				if err := a.requireLock(ctx, store, "in order to begin migration"); err != nil {
					return err
				}
				return a.export(ctx, store, all)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "print WorkloadEndpoints and Profiles too, and nodes under their own names")
	return c
}

// export prints the three parts once all is read.
func (a *app) export(ctx context.Context, store datastore.Store, all bool) error {
	client := resource.New(store, nil)
	e := &exporter{nodes: map[string]string{}}
	kinds := exportedKinds(all)
	lists := make(map[string][]api.Object, len(kinds))
	for _, k := range kinds {
		objects, problems, err := client.List(ctx, k, "")
		if err != nil {
			return a.describe("get", k.Name, err)
		}
		if len(problems) > 0 {
			return exit.New(exit.Input, "delete or repair it; nothing was exported", fmt.Errorf("failed to export: %s", bracketed(problems)))
		}
		lists[k.Name] = objects
	}
	if !all {
		if err := e.learnNodes(lists["Node"]); err != nil {
			return err
		}
	}
	info, err := datastore.For[api.ClusterInformation](store).Get(ctx, "", "default")
	if err != nil {
		return a.noCluster(err)
	}
	data, err := e.ipam(ctx, store)
	if err != nil {
		return a.describe("get", "IPAM", err)
	}
	for _, k := range kinds {
		list := &List{Kind: k.Name + "List", APIVersion: api.GroupVersion, Items: e.objects(lists[k.Name])}
		text, err := yaml.Marshal(list)
		if err != nil {
			return fmt.Errorf("print %s: %w", k.Name, err)
		}
		fmt.Fprintf(a.Stdout, "%s---\n", text)
	}
	for _, part := range []any{info, data} {
		text, err := json.MarshalIndent(part, "", "  ")
		if err != nil {
			return fmt.Errorf("print export: %w", err)
		}
		fmt.Fprintf(a.Stdout, "%s%s\n", exportSeparator, text)
	}
	return nil
}

// exporter knows by which names Kubernetes knows the nodes.
type exporter struct{ nodes map[string]string }

func (e *exporter) learnNodes(nodes []api.Object) error {
	for _, o := range nodes {
		n, ok := o.(*api.Node)
		if !ok {
			continue
		}
		i := slices.IndexFunc(n.Spec.OrchRefs, func(r api.OrchRef) bool { return r.Orchestrator == "k8s" && r.NodeName != "" })
		if i < 0 {
			return exit.New(exit.Input, "--all exports for another etcd", fmt.Errorf("node %s missing a 'k8s' orchestrator reference. Unable to export data unless every node has a 'k8s' orchestrator reference", n.Name))
		}
		e.nodes[n.Name] = n.Spec.OrchRefs[i].NodeName
	}
	return nil
}

// node is the name of a node in the export.
func (e *exporter) node(name string) string { return cmp.Or(e.nodes[name], name) }

// objects are the resources without what belongs to this datastore.
func (e *exporter) objects(list []api.Object) []api.Object {
	kept := []api.Object{}
	for _, o := range list {
		m, kind := o.Meta(), o.Type().Kind
		if kind == "NetworkPolicy" && strings.HasPrefix(m.Name, "knp.default.") || kind == "Profile" && m.Name == api.DefaultAllowProfile {
			continue // Kubernetes' own, and the one that nobody stores
		}
		m.UID, m.ResourceVersion, m.CreationTimestamp, m.DeletionTimestamp = "", "", nil, nil
		switch kind {
		case "Node":
			m.Name = e.node(m.Name)
		case "FelixConfiguration", "BGPConfiguration":
			if node, ok := strings.CutPrefix(m.Name, "node."); ok {
				m.Name = "node." + e.node(node)
			}
		}
		kept = append(kept, o)
	}
	return kept
}

// ipam reads the IPAM data.
func (e *exporter) ipam(ctx context.Context, store datastore.Store) (*ipamExport, error) {
	out := &ipamExport{}
	for _, part := range []struct {
		kind string
		into *[]ipamPair
	}{{datastore.KindBlockAffinity, &out.Affinities}, {datastore.KindIPAMBlock, &out.Blocks}, {datastore.KindIPAMHandle, &out.Handles}} {
		entries, _, err := store.List(ctx, datastore.Query{Kind: part.kind})
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			pair, err := e.pair(entry)
			if err != nil {
				return nil, err
			}
			*part.into = append(*part.into, pair)
		}
	}
	entry, err := store.Get(ctx, datastore.Key{Kind: datastore.KindIPAMConfig, Name: "default"})
	if isNotFound(err) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	pair, err := e.pair(entry)
	out.Config = &pair
	return out, err
}

// pair is one stored value, with the nodes' names of the export.
func (e *exporter) pair(entry datastore.Entry) (ipamPair, error) {
	key, value := entry.Key, entry.Value
	var err error
	switch key.Kind {
	case datastore.KindBlockAffinity:
		if host, ok := strings.CutPrefix(key.Namespace, "host:"); ok {
			key.Namespace = "host:" + e.node(host)
		}
		if len(value) == 0 { // the form of old releases
			value, err = json.Marshal(api.BlockAffinity{State: api.AffinityConfirmed})
		}
	case datastore.KindIPAMHandle:
		key.Name = e.handle(key.Name)
	case datastore.KindIPAMBlock:
		value, err = e.block(value)
	}
	if err == nil && !json.Valid(value) {
		err = errors.New("the value is not JSON")
	}
	if err != nil {
		return ipamPair{}, fmt.Errorf("export %s: %w", entry.Key, err)
	}
	path, err := datastore.Path(key)
	return ipamPair{Key: path, Value: value}, err
}

// handle is the name of a tunnel's handle, which ends with its node's.
func (e *exporter) handle(id string) string {
	for _, kind := range []ipam.TunnelKind{ipam.TunnelIPIP, ipam.TunnelVXLAN, ipam.TunnelVXLANv6, ipam.TunnelWireguard, ipam.TunnelWireguardV6} {
		if node, ok := strings.CutPrefix(id, kind.Handle("")); ok && e.nodes[node] != "" {
			return kind.Handle(e.node(node))
		}
	}
	return id
}

func (e *exporter) block(value []byte) ([]byte, error) {
	if len(e.nodes) == 0 {
		return value, nil
	}
	var b api.IPAMBlock
	if err := json.Unmarshal(value, &b); err != nil {
		return nil, err
	}
	if b.Affinity != nil {
		if host, ok := strings.CutPrefix(*b.Affinity, "host:"); ok {
			owner := "host:" + e.node(host)
			b.Affinity = &owner
		}
	}
	for _, attr := range b.Attributes {
		if node := attr.Secondary["node"]; node != "" {
			attr.Secondary["node"] = e.node(node)
		}
		if attr.HandleID != nil {
			*attr.HandleID = e.handle(*attr.HandleID)
		}
	}
	return json.Marshal(b)
}
