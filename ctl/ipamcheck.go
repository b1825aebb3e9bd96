package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/atomicfile"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/ipam"
)

// ipamReport is what `ipam check -o` writes and `ipam release --from-report`
// reads, in calicoctl's form.
type ipamReport struct {
	Version         string                         `json:"version"`
	ClusterGUID     string                         `json:"clusterGUID"`
	Locked          bool                           `json:"datastoreLocked"`
	ClusterRevision string                         `json:"clusterInformationRevision"`
	ClusterType     string                         `json:"clusterType"`
	Allocations     map[string][]*reportAllocation `json:"allocations"` // by address
	LeakedHandles   []reportHandle                 `json:"leakedHandles,omitempty"`
}

type reportAllocation struct {
	IP       string   `json:"ip"`
	Handle   string   `json:"handle,omitempty"`
	Sequence *uint64  `json:"sequenceNumber,omitempty"`
	Pod      string   `json:"pod,omitempty"`
	Space    string   `json:"namespace,omitempty"`
	Node     string   `json:"node,omitempty"`
	Type     string   `json:"type,omitempty"`
	Created  string   `json:"creationTimestamp,omitempty"`
	InUse    bool     `json:"inUse"`
	Borrowed bool     `json:"borrowed,omitempty"`
	Owners   []string `json:"owners"`

	addr  netip.Addr
	attrs string
}

type reportHandle struct {
	ID       string
	UID      *string // of Kubernetes' custom resources, null in etcd
	Revision string
}

type ipamCheckFlags struct {
	all, problems bool
	output        string
}

func (a *app) ipamCheckCommand() *cobra.Command {
	var f ipamCheckFlags
	var kubeconfig string
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare the addresses assigned with those in use",
		Long: `Compare the addresses that are assigned with those that nodes and workloads use.

Lock the datastore first ('datastore migrate lock') if the report is to be used by
'ipam release': a workload that comes or goes meanwhile looks like a problem.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, log, err := a.openStore(c.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			client := ipam.New(store, ipam.Options{Log: log, Now: a.Now})
			return a.describe("get", "IPAM", a.ipamCheck(c.Context(), store, client, f))
		},
	}
	c.Flags().BoolVar(&f.all, "show-all-ips", false, "print every address that is checked")
	c.Flags().BoolVar(&f.problems, "show-problem-ips", false, "print the addresses that are leaked or not properly assigned")
	c.Flags().StringVarP(&f.output, "output", "o", "", "write a report for 'ipam release' to this file")
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", "accepted for calicoctl's sake; the check needs no Kubernetes")
	return c
}

// ipamChecker holds what has been read.
type ipamChecker struct {
	out           io.Writer
	all, problems bool
	total         int // problems found
	allocations   map[netip.Addr][]*reportAllocation
	byNode        map[string]int
	users         map[netip.Addr][]string
	wanted        map[string]bool // handles named by blocks
	pools         []netip.Prefix  // active ones
	services      int
}

func (a *app) ipamCheck(ctx context.Context, store datastore.Store, client *ipam.Client, f ipamCheckFlags) error {
	c := &ipamChecker{
		out: a.Stdout, all: f.all, problems: f.all || f.problems, allocations: map[netip.Addr][]*reportAllocation{},
		byNode: map[string]int{}, users: map[netip.Addr][]string{}, wanted: map[string]bool{},
	}
	c.say("Checking IPAM for inconsistencies...\n\n")
	info, err := datastore.For[api.ClusterInformation](store).Get(ctx, "", "default")
	if err != nil {
		return a.noCluster(err)
	}
	handles, err := c.read(ctx, store, client)
	if err != nil {
		return err
	}
	c.printBusiest()
	c.scanAllocated()
	c.scanUsed()
	leaked := c.scanHandles(handles)
	c.say("Check complete; found %d problems.\n", c.total)
	if f.output == "" {
		return nil
	}
	r := ipamReport{
		Version: a.Version, ClusterGUID: info.Spec.ClusterGUID, ClusterType: info.Spec.ClusterType, ClusterRevision: info.ResourceVersion,
		Locked: isLocked(info), Allocations: map[string][]*reportAllocation{}, LeakedHandles: leaked,
	}
	for addr, list := range c.allocations {
		r.Allocations[addr.String()] = list
	}
	return writeReport(f.output, r)
}

func (c *ipamChecker) say(format string, args ...any) { fmt.Fprintf(c.out, format, args...) }

// read fills the checker, section by section, and returns the handles.
func (c *ipamChecker) read(ctx context.Context, store datastore.Store, client *ipam.Client) (map[string]reportHandle, error) {
	if err := c.readBlocks(ctx, client); err != nil {
		return nil, err
	}
	if err := c.readPools(ctx, store); err != nil {
		return nil, err
	}
	if err := c.readNodes(ctx, store); err != nil {
		return nil, err
	}
	c.say("Loading all service load balancer IPs.\nFound %d service load balancer.\n", c.services)
	if c.services > 0 {
		c.say("  Services cannot be asked without Kubernetes; their IPs count as in use.\n")
	}
	c.say("\n")
	if err := c.readWorkloads(ctx, store); err != nil {
		return nil, err
	}
	c.say("Loading all handles\n")
	items, _, problems, err := datastore.ListJSON[api.IPAMHandle](ctx, store, datastore.Query{Kind: datastore.KindIPAMHandle})
	if err != nil {
		return nil, fmt.Errorf("failed to list handles: %w", err)
	}
	c.report(problems)
	handles := map[string]reportHandle{}
	for _, i := range items {
		handles[i.Key.Name] = reportHandle{ID: i.Key.Name, Revision: string(i.Rev)}
	}
	return handles, nil
}

// report prints what could not be read; each counts as a problem.
func (c *ipamChecker) report(problems []error) {
	for _, p := range problems {
		c.say("  %s\n", oneLine(p.Error()))
	}
	c.total += len(problems)
}

func (c *ipamChecker) readBlocks(ctx context.Context, client *ipam.Client) error {
	c.say("Loading all IPAM blocks...\n")
	blocks, corrupt, err := client.Blocks(ctx)
	if err != nil {
		return fmt.Errorf("failed to list IPAM blocks: %w", err)
	}
	c.say("Found %d IPAM blocks.\n", len(blocks)+len(corrupt))
	total := 0
	for _, b := range blocks {
		c.say(" IPAM block %s affinity=%s:\n", b.CIDR, cmp.Or(b.Affinity, "<none>"))
		for _, x := range b.Allocations {
			c.allocated(x)
			total++
		}
	}
	c.report(corrupt)
	c.say("IPAM blocks record %d allocations.\n\n", total)
	return nil
}

// windowsReserved is the handle of the addresses that Windows keeps in each block.
const windowsReserved = "windows-reserved-ipam-handle"

func (c *ipamChecker) allocated(x ipam.Allocation) {
	host, _ := strings.CutPrefix(x.Affinity, "host:")
	if host == x.Affinity {
		host = ""
	}
	r := &reportAllocation{
		IP: x.Addr.String(), Handle: x.Handle, Sequence: &x.Sequence, Pod: x.Attrs["pod"], Space: x.Attrs["namespace"], Type: x.Attrs["type"],
		Created: x.Attrs["timestamp"], Node: cmp.Or(x.Node, host), addr: x.Addr, attrs: attrText(x),
	}
	r.Borrowed = r.Node != host
	c.allocations[x.Addr] = append(c.allocations[x.Addr], r)
	c.byNode[r.Node]++
	if c.all {
		c.say("  %s allocated; attrs %s\n", x.Addr, r.attrs)
	}
	switch {
	case x.Handle == windowsReserved:
		r.Handle = ""
		c.used(x.Addr, "Reserved for Windows")
	case x.Attrs["service"] != "" || strings.HasPrefix(x.Affinity, "virtual:"):
		c.services++
		c.used(x.Addr, "Service("+x.AllocatedTo()+")")
	}
	if r.Handle != "" {
		c.wanted[r.Handle] = true
	}
}

func attrText(x ipam.Allocation) string {
	var pairs []string
	for _, k := range sortedKeys(x.Attrs) {
		pairs = append(pairs, k+"="+x.Attrs[k])
	}
	return oneLine(fmt.Sprintf("Main:%s Extra:%s", cmp.Or(x.Handle, "<none>"), strings.Join(pairs, ",")))
}

// used records who uses an address.
func (c *ipamChecker) used(addr netip.Addr, owner string) {
	if c.all {
		c.say("  %s belongs to %s\n", addr, owner)
	}
	c.users[addr] = append(c.users[addr], owner)
	for _, r := range c.allocations[addr] {
		r.InUse = true
		r.Owners = append(r.Owners, owner)
	}
}

func (c *ipamChecker) readPools(ctx context.Context, store datastore.Store) error {
	c.say("Loading all IPAM pools...\n")
	pools, _, problems, err := datastore.For[api.IPPool](store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("failed to load IP pools: %w", err)
	}
	for _, p := range pools {
		cidr, ok := p.Prefix()
		if !ok || p.Spec.Disabled {
			continue
		}
		c.say("  %s\n", cidr)
		c.pools = append(c.pools, cidr)
	}
	c.report(problems)
	c.say("Found %d active IP pools.\n\n", len(c.pools))
	return nil
}

func (c *ipamChecker) readNodes(ctx context.Context, store datastore.Store) error {
	c.say("Loading all nodes.\n")
	nodes, _, problems, err := datastore.For[api.Node](store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("failed to list nodes: %w", err)
	}
	total := 0
	for _, n := range nodes {
		texts := []string{n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr}
		if w := n.Spec.Wireguard; w != nil {
			texts = append(texts, w.InterfaceIPv4Address, w.InterfaceIPv6Address)
		}
		if b := n.Spec.BGP; b != nil {
			texts = append(texts, b.IPv4IPIPTunnelAddr)
		}
		total += c.usedTexts(texts, "Node("+n.Name+")")
	}
	c.report(problems)
	c.say("Found %d node tunnel IPs.\n\n", total)
	return nil
}

func (c *ipamChecker) readWorkloads(ctx context.Context, store datastore.Store) error {
	c.say("Loading all workload endpoints.\n")
	weps, _, problems, err := datastore.For[api.WorkloadEndpoint](store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("failed to list workload endpoints: %w", err)
	}
	total := 0
	for _, w := range weps {
		total += c.usedTexts(w.Spec.IPNetworks, "Workload("+w.Namespace+"/"+w.Name+")")
	}
	c.report(problems)
	c.say("Found %d workload IPs.\nWorkloads and nodes are using %d IPs.\n\n", total, len(c.users))
	return nil
}

// usedTexts records addresses written with or without a prefix length; what is
// neither is a problem of its owner.
func (c *ipamChecker) usedTexts(texts []string, owner string) int {
	n := 0
	for _, text := range texts {
		if text == "" {
			continue
		}
		addr, err := netip.ParseAddr(text)
		if p, errPrefix := netip.ParsePrefix(text); errPrefix == nil {
			addr, err = p.Addr(), nil
		}
		if err != nil {
			c.report([]error{fmt.Errorf("failed to parse IP (%s) of %s", text, owner)})
			continue
		}
		c.used(addr.Unmap(), owner)
		n++
	}
	return n
}

func (c *ipamChecker) printBusiest() {
	const most = 20
	c.say("Looking for top (up to %d) nodes by allocations...\n", most)
	nodes := slices.Sorted(maps.Keys(c.byNode))
	slices.SortStableFunc(nodes, func(a, b string) int { return c.byNode[b] - c.byNode[a] })
	for _, n := range nodes[:min(most, len(nodes))] {
		c.say("  %s has %d allocations\n", n, c.byNode[n])
	}
	if len(nodes) > 0 {
		c.say("Node with most allocations has %d; median is %d\n", c.byNode[nodes[0]], c.byNode[nodes[len(nodes)/2]])
	}
	c.say("\n")
}

func (c *ipamChecker) scanAllocated() {
	c.say("Scanning for IPs that are allocated but not actually in use...\n")
	leaked := 0
	for _, addr := range slices.SortedFunc(maps.Keys(c.allocations), netip.Addr.Compare) {
		if len(c.users[addr]) > 0 {
			continue
		}
		leaked++
		if c.problems {
			for _, r := range c.allocations[addr] {
				c.say("  %s leaked; attrs %s\n", addr, r.attrs)
			}
		}
	}
	c.total += leaked
	c.say("Found %d IPs that are allocated in IPAM but not actually in use.\n", leaked)
}

func (c *ipamChecker) scanUsed() {
	c.say("Scanning for IPs that are in use by a workload or node but not allocated in IPAM...\n")
	foreign, missing := 0, 0
	for _, addr := range slices.SortedFunc(maps.Keys(c.users), netip.Addr.Compare) {
		owners := c.users[addr]
		if c.problems && len(owners) > 1 {
			c.say("  %s has multiple owners.\n", addr)
		}
		if len(c.allocations[addr]) > 0 {
			continue
		}
		what := "and in active IPAM pool but has no IPAM allocation."
		if slices.ContainsFunc(c.pools, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			missing++
		} else {
			foreign++
			what = "is not in any active IP pool."
		}
		if c.problems {
			for _, owner := range owners {
				c.say("  %s in use by %s %s\n", addr, owner, what)
			}
		}
	}
	c.total += foreign + missing
	c.say("Found %d in-use IPs that are not in active IP pools.\n", foreign)
	c.say("Found %d in-use IPs that are in active IP pools but have no corresponding IPAM allocation.\n\n", missing)
}

func (c *ipamChecker) scanHandles(handles map[string]reportHandle) (leaked []reportHandle) {
	c.say("Scanning for IPAM handles with no matching IPs...\n")
	good := 0
	for _, id := range slices.Sorted(maps.Keys(handles)) {
		clean, _, _ := strings.Cut(id, "\r") // old migrations left what follows
		if c.wanted[clean] {
			good++
			continue
		}
		if c.problems {
			c.say("  %s doesn't have any active IPs.\n", oneLine(id))
		}
		leaked = append(leaked, handles[id])
	}
	c.total += len(leaked)
	c.say("Found %d handles with no matching IPs (and %d handles with matches).\n", len(leaked), good)
	c.say("Scanning for IPs with missing handle...\n")
	missing := 0
	for _, id := range slices.Sorted(maps.Keys(c.wanted)) {
		if _, ok := handles[id]; ok {
			continue
		}
		missing++
		if c.problems {
			c.say("  %s is in use in a block but doesn't exist.\n", oneLine(id))
		}
	}
	c.total += missing
	c.say("Found %d handles mentioned in blocks with no matching handle resource.\n", missing)
	return leaked
}

func writeReport(path string, r ipamReport) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := atomicfile.Write(path, append(text, '\n'), 0o644); err != nil {
		return exit.New(exit.Input, "", fmt.Errorf("write report: %w", err))
	}
	return nil
}
