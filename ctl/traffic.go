package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/policy"
)

func (a *app) dropsCommand() *cobra.Command {
	var f agentFlags
	var on bool
	c := &cobra.Command{
		Use:   "drops",
		Short: "Print what this host denies, and by which rule",
		Long: `Print the rules by which this host has denied packets, with their counters; with
--follow print a line for every packet that is denied from now on. The kernel
limits the lines of each rule; counters count every packet.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if on {
				return f.untilInterrupted(c, a.followDrops)
			}
			return f.untilInterrupted(c, a.countDrops)
		},
	}
	f.add(c)
	c.Flags().BoolVarP(&on, "follow", "f", false, "print denied packets until interrupted")
	return c
}

// untilInterrupted runs what asks the agent until it is done, or the user has
// seen enough.
func (f *agentFlags) untilInterrupted(c *cobra.Command, do func(context.Context, agentFlags) error) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return do(ctx, *f)
}

// countDrops prints the rules that have denied something.
func (a *app) countDrops(ctx context.Context, f agentFlags) error {
	hits, err := agentapi.NewClient(f.socket).Hits(ctx)
	if err != nil {
		return a.agentError(f.socket, err)
	}
	hits = slices.DeleteFunc(hits, func(h agentapi.RuleHits) bool { return h.Verdict.Allowed || h.Packets == 0 })
	if f.output == "json" {
		return a.printJSON(hitsDocument{hits})
	}
	if len(hits) == 0 {
		fmt.Fprintln(a.Stdout, "Nothing has been denied by the rules in force. Use -f to wait for it.")
		return nil
	}
	slices.SortFunc(hits, func(x, y agentapi.RuleHits) int { return cmp.Compare(y.Packets, x.Packets) })
	var rows [][]string
	for _, h := range hits {
		rows = append(rows, []string{strconv.FormatUint(h.Packets, 10), strconv.FormatUint(h.Bytes, 10), h.Verdict.Direction, h.Verdict.Because})
	}
	return writeGrid(a.Stdout, []string{"PACKETS", "BYTES", "DIRECTION", "DENIED BY"}, rows)
}

type hitsDocument struct {
	Rules []agentapi.RuleHits `json:"rules"`
}

// jsonDocument is what this file prints for programs.
type jsonDocument interface {
	hitsDocument | agentapi.Drop | agentapi.Flow
}

func printLine[T jsonDocument](a *app, v T) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
	return err
}

func (a *app) printJSON(d hitsDocument) error {
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
	return err
}

func (a *app) followDrops(ctx context.Context, f agentFlags) error {
	who := a.newDirectory(ctx)
	var failed error
	err := agentapi.NewClient(f.socket).Drops(ctx, func(d agentapi.Drop) {
		switch {
		case failed != nil:
		case f.output == "json":
			who.fill(ctx, &d.Packet)
			failed = printLine(a, d)
		case d.Lost:
			_, failed = fmt.Fprintln(a.Stdout, "(more packets were denied than could be printed)")
		default:
			_, failed = fmt.Fprintf(a.Stdout, "%s %s DENIED %s: %s%s\n", d.Time.Local().Format("15:04:05.000"), who.line(ctx, d.Packet), who.where(d.Verdict), d.Verdict.Because, who.would(d.Staged))
		}
	})
	if err != nil {
		return a.agentError(f.socket, err)
	}
	return failed
}

func (a *app) flowsCommand() *cobra.Command {
	var f agentFlags
	var on bool
	c := &cobra.Command{
		Use:   "flows",
		Short: "Print the connections of this host's workloads, and which rule lets them through",
		Long: `Print the connections of this host's workloads, those between the same two and
to the same port in one line; with --follow print a line for each connection
that begins, and for each packet that is denied.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if on {
				return f.untilInterrupted(c, a.followFlows)
			}
			return f.untilInterrupted(c, a.listFlows)
		},
	}
	f.add(c)
	c.Flags().BoolVarP(&on, "follow", "f", false, "print connections as they begin, until interrupted")
	return c
}

// flowKey is what the connections of one line have in common.
type flowKey struct {
	from, to, traffic, verdict string
}

type flowSum struct {
	connections    int
	packets, bytes uint64
	replied        int
}

func (a *app) listFlows(ctx context.Context, f agentFlags) error {
	who := a.newDirectory(ctx)
	sums := map[flowKey]flowSum{}
	var failed error
	err := agentapi.NewClient(f.socket).Flows(ctx, false, func(v agentapi.Flow) {
		if f.output == "json" {
			if failed == nil {
				who.fill(ctx, &v.Packet)
				failed = printLine(a, v)
			}
			return
		}
		k := flowKey{who.name(ctx, v.Packet.Source), who.name(ctx, v.Packet.Destination), traffic(v.Packet), verdictWord(v.Verdict)}
		if v.Staged != nil {
			k.verdict += "; staged would be " + verdictWord(*v.Staged)
		}
		s := sums[k]
		s.connections, s.packets, s.bytes = s.connections+1, s.packets+v.Packets, s.bytes+v.Bytes
		if v.Replied {
			s.replied++
		}
		sums[k] = s
	})
	if err != nil {
		return a.agentError(f.socket, err)
	}
	if failed != nil || f.output == "json" {
		return failed
	}
	if len(sums) == 0 {
		fmt.Fprintln(a.Stdout, "No connections of this host's workloads.")
		return nil
	}
	var rows [][]string
	for k, s := range sums {
		rows = append(rows, []string{
			k.from, k.to, k.traffic, strconv.Itoa(s.connections), strconv.Itoa(s.replied), strconv.FormatUint(s.packets, 10), strconv.FormatUint(s.bytes, 10), k.verdict,
		})
	}
	slices.SortFunc(rows, func(x, y []string) int { return slices.Compare(x, y) })
	return writeGrid(a.Stdout, []string{"FROM", "TO", "TRAFFIC", "CONNECTIONS", "ANSWERED", "PACKETS", "BYTES", "POLICY"}, rows)
}

// verdictWord is what stands in a table for a verdict.
func verdictWord(v agentapi.Verdict) string {
	word := "denied"
	if v.Allowed {
		word = "allowed"
	}
	if v.Policy != "" {
		return word + " by " + v.Policy
	}
	return word + ": " + v.Because
}

// followFlows prints denied packets and connections as they begin, together.
func (a *app) followFlows(ctx context.Context, f agentFlags) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	who := a.newDirectory(ctx)
	var mu sync.Mutex
	var failed error
	put := func(print func() error) {
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = print()
		}
	}
	began := a.Now()
	errs := make(chan error, 2)
	client := agentapi.NewClient(f.socket)
	go func() {
		errs <- client.Drops(ctx, func(d agentapi.Drop) {
			if d.Lost {
				return
			}
			put(func() error {
				return a.flowLine(ctx, who, f, agentapi.Flow{Time: d.Time, Packet: d.Packet, Verdict: d.Verdict, Staged: d.Staged})
			})
		})
		cancel()
	}()
	go func() {
		errs <- client.Flows(ctx, true, func(v agentapi.Flow) {
			if v.Ended || v.Time.Before(began) {
				return
			}
			put(func() error { return a.flowLine(ctx, who, f, v) })
		})
		cancel()
	}()
	for range 2 {
		if err := <-errs; err != nil && failed == nil {
			failed = a.agentError(f.socket, err)
		}
	}
	return failed
}

func (a *app) flowLine(ctx context.Context, who *directory, f agentFlags, v agentapi.Flow) error {
	if f.output == "json" {
		who.fill(ctx, &v.Packet)
		return printLine(a, v)
	}
	_, err := fmt.Fprintf(a.Stdout, "%s %s %s %s: %s%s\n", v.Time.Local().Format("15:04:05.000"), who.line(ctx, v.Packet), verdictUpper(v.Verdict),
		who.where(v.Verdict), v.Verdict.Because, who.would(v.Staged))
	return err
}

func verdictUpper(v agentapi.Verdict) string {
	if v.Allowed {
		return "ALLOWED"
	}
	return "DENIED"
}

// would is the end of a line about what the staged policies would do, if that is
// something else.
func (d *directory) would(v *agentapi.Verdict) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf(" (staged policies: would be %s %s: %s)", verdictUpper(*v), d.where(*v), v.Because)
}

// fill names both ends, where they have names.
func (d *directory) fill(ctx context.Context, p *agentapi.Packet) {
	for _, end := range []struct {
		at   netip.Addr
		name *string
	}{{p.Source, &p.SourceName}, {p.Destination, &p.DestinationName}} {
		if name := d.name(ctx, end.at); name != end.at.String() {
			*end.name = name
		}
	}
}

// where is the place of a decision: "ingress of default/web".
func (d *directory) where(v agentapi.Verdict) string {
	if v.Endpoint == "" {
		return "at " + v.Direction
	}
	return v.Direction + " of " + d.endpoint(v.Endpoint)
}

// endpoint is what people call an endpoint.
func (d *directory) endpoint(key string) string {
	if name, known := d.endpoints[key]; known {
		return name
	}
	return key
}

// traffic is protocol and port: "tcp/80".
func traffic(p agentapi.Packet) string {
	switch {
	case policy.HasPorts(p.Protocol):
		return policy.ProtocolName(p.Protocol) + "/" + strconv.Itoa(int(p.DestinationPort))
	case p.Protocol == policy.ProtoICMP || p.Protocol == policy.ProtoICMPv6:
		return policy.ProtocolName(p.Protocol) + "/" + strconv.Itoa(int(p.Type))
	}
	return policy.ProtocolName(p.Protocol)
}

// directory tells whose an address is. It reads the datastore now and again;
// without one it knows nothing and addresses stay addresses.
type directory struct {
	a         *app
	names     map[netip.Addr]string
	endpoints map[string]string // by NAMESPACE/NAME
	read      time.Time
}

// directoryAge is how old the names may be when an unknown address turns up.
const directoryAge = 5 * time.Second

func (a *app) newDirectory(ctx context.Context) *directory {
	d := &directory{a: a}
	d.refresh(ctx)
	return d
}

func (d *directory) refresh(ctx context.Context) {
	d.read = d.a.Now()
	err := d.a.withStore(ctx, func(ctx context.Context, store datastore.Store) error {
		names, endpoints, err := knownNames(ctx, store)
		if err == nil {
			d.names, d.endpoints = names, endpoints
		}
		return err
	})
	if err != nil && d.names == nil {
		d.names = map[netip.Addr]string{}
		d.a.warn("addresses are printed without names: " + err.Error())
	}
}

func (d *directory) name(ctx context.Context, a netip.Addr) string {
	name, known := d.names[a]
	if !known && d.a.Now().Sub(d.read) > directoryAge {
		d.refresh(ctx)
		name, known = d.names[a]
	}
	if !known {
		return a.String()
	}
	return name
}

// line is a packet with names: "default/client:40000 -> default/web:80 tcp".
func (d *directory) line(ctx context.Context, p agentapi.Packet) string {
	src, dst := d.name(ctx, p.Source), d.name(ctx, p.Destination)
	bracket := func(name string) string {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	if policy.HasPorts(p.Protocol) {
		return fmt.Sprintf("%s:%d -> %s:%d %s", bracket(src), p.SourcePort, bracket(dst), p.DestinationPort, policy.ProtocolName(p.Protocol))
	}
	if p.Protocol == policy.ProtoICMP || p.Protocol == policy.ProtoICMPv6 {
		return fmt.Sprintf("%s -> %s %s type %d", src, dst, policy.ProtocolName(p.Protocol), p.Type)
	}
	return fmt.Sprintf("%s -> %s %s", src, dst, policy.ProtocolName(p.Protocol))
}

// knownNames reads whose the addresses of workloads and hosts are, and what
// people call the endpoints.
func knownNames(ctx context.Context, store datastore.Store) (names map[netip.Addr]string, endpoints map[string]string, err error) {
	v := &view{}
	for _, kind := range []string{"WorkloadEndpoint", "Node"} {
		entries, _, err := store.List(ctx, datastore.Query{Kind: kind})
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			v.add(e)
		}
	}
	names, endpoints = map[netip.Addr]string{}, map[string]string{}
	for _, n := range v.nodes {
		for _, p := range hostParties(n) {
			names[p.Addr] = "host " + n.Name
		}
	}
	for _, w := range v.workloads {
		endpoints[w.Namespace+"/"+w.Name] = workloadName(w)
		for _, p := range workloadParties(w) {
			names[p.Addr] = p.Name
		}
	}
	return names, endpoints, nil
}
