package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/explain"
	"github.com/manekinet/maneki/policy"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "See which policies apply where"}
	group(c)
	c.AddCommand(a.policyShowCommand(), a.policyGraphCommand())
	return c
}

func (a *app) policyShowCommand() *cobra.Command {
	var in inputFlags
	var socket string
	c := &cobra.Command{
		Use:   "show ENDPOINT",
		Short: "Print what applies to a workload or host endpoint, in order",
		Long: `Print the tiers, policies and rules that apply to an endpoint, in the order in
which they are asked. ENDPOINT is a workload (NAMESPACE/NAME, pod, container ID,
address) or the name of a HostEndpoint. Of an endpoint on this host the counters
of its rules are printed too; endpoints to which the same policies apply share
them.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.policyShow(c.Context(), args[0], in.namespace, socket)
		},
	}
	in.registerNamespace(c)
	c.Flags().StringVar(&socket, "socket", agentapi.DefaultSocket, "where the agent listens")
	return c
}

func (a *app) policyShow(ctx context.Context, word, namespace, socket string) error {
	return a.withView(ctx, func(v *view) error {
		node, ep, err := v.endpoint(word, namespace)
		if err != nil {
			return exit.New(exit.NotFound, "see 'maneki get workloadendpoints -A' and 'maneki get hostendpoints'", err)
		}
		text := explain.Show(v.state(node).Policy, ep, v.nameOf(ep.Key), a.hitsOf(ctx, socket, node))
		_, err = fmt.Fprint(a.Stdout, text)
		return err
	})
}

// hitsOf asks this host's agent for the counters of its rules; nil where it is
// not the agent of the node, or does not run.
func (a *app) hitsOf(ctx context.Context, socket, node string) map[explain.HitKey]explain.Hits {
	if status, err := a.Status(ctx, socket); err != nil || status.Node != node {
		return nil
	}
	all, err := agentapi.NewClient(socket).Hits(ctx)
	if err != nil {
		return nil
	}
	out := map[explain.HitKey]explain.Hits{}
	for _, h := range all {
		v := h.Verdict
		k := explain.HitKey{Tier: v.Tier, Policy: v.Policy, Rule: -1}
		if v.Direction == policy.Egress.String() {
			k.Direction = policy.Egress
		}
		if v.Rule != nil {
			k.Rule = *v.Rule
		}
		sum := out[k]
		out[k] = explain.Hits{Packets: sum.Packets + h.Packets, Bytes: sum.Bytes + h.Bytes}
	}
	return out
}

// withView reads the datastore and hands it on.
func (a *app) withView(ctx context.Context, do func(v *view) error) error {
	return a.withStore(ctx, func(ctx context.Context, store datastore.Store) error {
		v, err := loadView(ctx, store)
		if err != nil {
			return fmt.Errorf("read the datastore: %w", err)
		}
		return do(v)
	})
}

// endpoint finds an endpoint and its host.
func (v *view) endpoint(word, namespace string) (node string, ep *policy.Endpoint, err error) {
	parties, err := v.find(word, namespace)
	if err == nil && parties[0].Kind == explain.Workload {
		node := parties[0].Node
		if ep := v.state(node).Policy.Endpoints[parties[0].Key]; ep != nil {
			return node, ep, nil
		}
		return "", nil, fmt.Errorf("workload %s is not served by its host %s", parties[0].Name, parties[0].Node)
	}
	for _, n := range v.nodes {
		for key, ep := range v.state(n.Name).Policy.Endpoints {
			if ep.Host && key.Name == word {
				return n.Name, ep, nil
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("%q has no endpoint that policies apply to", word)
	}
	return "", nil, err
}

func (a *app) policyGraphCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "graph",
		Short: "Draw who may talk to whom",
		Long: `Draw the policies of the whole network: from the peers that their rules name,
over the policies, to the endpoints that they apply to. Green allows, red
denies, dashed is staged. -o dot is for Graphviz, -o svg for a browser.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.policyGraph(c.Context(), output) },
	}
	c.Flags().StringVarP(&output, "output", "o", "dot", "dot or svg")
	return c
}

func (a *app) policyGraph(ctx context.Context, output string) error {
	if output != "dot" && output != "svg" {
		return exit.New(exit.Usage, "use -o dot or -o svg", fmt.Errorf("unrecognized output format '%s'", output))
	}
	return a.withView(ctx, func(v *view) error {
		hosts := map[string]*policy.State{}
		for _, n := range v.nodes {
			hosts[n.Name] = v.state(n.Name).Policy
		}
		if len(hosts) == 0 {
			return exit.New(exit.NotFound, "", errors.New("the datastore has no hosts"))
		}
		g := explain.NewGraph(hosts, v.nameOf)
		text := g.DOT()
		if output == "svg" {
			text = g.SVG()
		}
		_, err := fmt.Fprint(a.Stdout, text)
		return err
	})
}
