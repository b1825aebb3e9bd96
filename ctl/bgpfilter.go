package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp/filter"
	"github.com/manekinet/maneki/bgp/message"
	"github.com/manekinet/maneki/calc"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

// filterTest is a route to try filters on.
type filterTest struct {
	prefix, communities, asPath, device string
	metric                              uint32
	export, own, external               bool
}

func (a *app) bgpFiltersCommand() *cobra.Command {
	c := &cobra.Command{Use: "filters", Short: "Try BGPFilters"}
	group(c)
	var t filterTest
	test := &cobra.Command{
		Use:   "test FILTER...",
		Short: "Print what these BGPFilters, asked in this order, do with a route",
		Args:  cobra.MinimumNArgs(1),
		RunE:  func(c *cobra.Command, args []string) error { return a.testFilters(c.Context(), args, t) },
	}
	f := test.Flags()
	f.StringVar(&t.prefix, "prefix", "", "destination of the route, such as 10.0.0.0/26")
	f.BoolVar(&t.export, "export", false, "ask the export rules, not those of import")
	f.BoolVar(&t.external, "ebgp", false, "the session is with another AS")
	f.BoolVar(&t.own, "own", false, "the route is this host's own, not learnt by BGP")
	f.StringVar(&t.communities, "communities", "", "blank-separated communities that it carries")
	f.StringVar(&t.asPath, "as-path", "", "blank-separated AS numbers")
	f.StringVar(&t.device, "interface", "", "interface of the route")
	f.Uint32Var(&t.metric, "metric", 1024, "metric of the route")
	c.AddCommand(test)
	return c
}

// route reads the flags.
func (t filterTest) route() (filter.Route, error) {
	wrong := func(flag, value, allowed string) error {
		return exit.New(exit.Usage, "give "+allowed, fmt.Errorf("--%s %q", flag, value))
	}
	r := filter.Route{Learnt: !t.own, Interface: t.device, InternalPeer: !t.external}
	var err error
	if r.Prefix, err = netip.ParsePrefix(t.prefix); err != nil || r.Prefix != r.Prefix.Masked() {
		return r, wrong("prefix", t.prefix, "a prefix without host bits, such as 10.0.0.0/26")
	}
	if t.metric >= 1<<31 {
		return r, wrong("metric", strconv.FormatUint(uint64(t.metric), 10), "0 to 2147483647")
	}
	r.Attrs.LocalPref = 1<<31 - 1 - t.metric
	if r.Attrs.Communities, r.Attrs.LargeCommunities, err = message.ParseCommunities(t.communities); err != nil {
		return r, wrong("communities", t.communities, "values such as 64512:100 or 64512:1:2")
	}
	for _, text := range slices.Backward(strings.Fields(t.asPath)) {
		as, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return r, wrong("as-path", t.asPath, "AS numbers with blanks between them")
		}
		r.Attrs = r.Attrs.Prepend(uint32(as))
	}
	return r, nil
}

func (a *app) testFilters(ctx context.Context, names []string, t filterTest) error {
	r, err := t.route()
	if err != nil {
		return err
	}
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	var list []filter.Filter
	for _, name := range names {
		res, err := datastore.For[api.BGPFilter](store).Get(ctx, "", name)
		if errors.Is(err, datastore.ErrNotFound) {
			list = append(list, filter.Filter{Name: name, Missing: true})
			a.warn(fmt.Sprintf("BGPFilter(%s) does not exist: it refuses everything", name))
			continue
		}
		if err != nil {
			return fmt.Errorf("read BGPFilter %s: %w", name, err)
		}
		one, err := calc.Filter(res)
		if err != nil {
			return err
		}
		list = append(list, one)
	}
	chain, run := filter.NewChain(list, nil), (*filter.Chain).Import
	if t.export {
		run = (*filter.Chain).Export
	}
	verdict, attrs, by := run(chain, r)
	fmt.Fprintf(a.Stdout, "%s: %s", r.Prefix, verdict)
	if by != "" {
		fmt.Fprintf(a.Stdout, " by BGPFilter %s", by)
	}
	fmt.Fprintln(a.Stdout)
	if verdict != filter.Reject {
		fmt.Fprintf(a.Stdout, "metric %d, AS path %s, communities %s\n", filter.Priority(attrs), cmp.Or(attrs.PathString(), "-"),
			cmp.Or(message.FormatCommunities(attrs.Communities, attrs.LargeCommunities), "-"))
	}
	return nil
}
