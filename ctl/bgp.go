package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/exit"
)

func (a *app) bgpCommand() *cobra.Command {
	c := &cobra.Command{Use: "bgp", Short: "Inspect this host's BGP sessions and routes"}
	group(c)
	c.AddCommand(a.bgpPeersCommand(), a.bgpRoutesCommand(), a.bgpFiltersCommand())
	return c
}

// agentFlags are the flags of commands that ask the agent.
type agentFlags struct{ socket, output string }

func (f *agentFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.socket, "socket", agentapi.DefaultSocket, "where the agent listens")
	c.Flags().StringVarP(&f.output, "output", "o", "", "json for the whole document")
}

func (f *agentFlags) check() error {
	if f.output != "" && f.output != "json" {
		return exit.New(exit.Usage, "use -o json, or leave it out", fmt.Errorf("unrecognized output format '%s'", f.output))
	}
	return nil
}

// agentError says what it means that the agent did not answer.
func (a *app) agentError(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Denied, "run the command as root", fmt.Errorf("socket %s: permission denied", socket))
	case errors.Is(err, agentapi.ErrNotRunning):
		return exit.New(exit.NotRunning, fmt.Sprintf("start it with '%s node run'", a.Name), err)
	}
	return fmt.Errorf("ask the agent: %w", err)
}

func (a *app) bgpPeersCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "peers",
		Short: "Print the BGP sessions, and why one is not up",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return a.bgpPeers(c.Context(), f)
		},
	}
	f.add(c)
	return c
}

func (a *app) bgpPeers(ctx context.Context, f agentFlags) error {
	s, err := a.Status(ctx, f.socket)
	if err != nil {
		return a.agentError(f.socket, err)
	}
	if f.output == "json" {
		return writeRows(a, s.Peers)
	}
	if s.ClusterID.IsValid() {
		fmt.Fprintf(a.Stdout, "Route reflector of cluster %s.\n", s.ClusterID)
	}
	if len(s.Peers) == 0 {
		fmt.Fprintf(a.Stdout, "No BGP peers (BGP is %s).\n", s.BGP)
		return nil
	}
	var rows [][]string
	for _, p := range s.Peers {
		role := "-"
		if p.Client {
			role = "client"
		}
		bfd := "-"
		if p.BFD != nil {
			bfd = strings.TrimSpace(p.BFD.State + " " + p.BFD.Detection)
		}
		rows = append(rows, []string{
			p.Address.String(), p.Name, p.Type, strconv.FormatUint(uint64(p.ASNumber), 10), role, p.State, agentapi.Since(p.Since, a.Now()), bfd,
			strconv.Itoa(p.Received), strconv.Itoa(p.Accepted), strconv.Itoa(p.Advertised), cmp.Or(strings.Join(p.Filters, ","), "-"), cmp.Or(p.LastError, "-"),
		})
	}
	return writeGrid(a.Stdout, []string{"ADDRESS", "NAME", "TYPE", "AS", "ROLE", "STATE", "SINCE", "BFD", "RECEIVED", "ACCEPTED", "ADVERTISED", "FILTERS", "REASON"}, rows)
}

func (a *app) bgpRoutesCommand() *cobra.Command {
	var f agentFlags
	var peer string
	var received, advertised bool
	c := &cobra.Command{
		Use:   "routes",
		Short: "Print the best BGP routes, or those exchanged with a peer",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			view, addr, err := routesView(peer, received, advertised)
			if err != nil {
				return err
			}
			routes, err := agentapi.NewClient(f.socket).BGPRoutes(c.Context(), view, addr)
			if err != nil {
				return a.agentError(f.socket, err)
			}
			return a.printRoutes(routes, f.output == "json")
		},
	}
	f.add(c)
	c.Flags().StringVar(&peer, "peer", "", "address of a peer")
	c.Flags().BoolVar(&received, "received", false, "print what the peer offers, also what is refused")
	c.Flags().BoolVar(&advertised, "advertised", false, "print what the peer has been sent")
	return c
}

// routesView reads the three flags: a peer and a direction, or neither.
func routesView(peer string, received, advertised bool) (string, netip.Addr, error) {
	none := netip.Addr{}
	switch {
	case peer == "" && (received || advertised):
		return "", none, exit.New(exit.Usage, "name the peer with --peer", errors.New("--received and --advertised are about one peer"))
	case received && advertised:
		return "", none, exit.New(exit.Usage, "give one of them", errors.New("--received and --advertised exclude each other"))
	case peer == "":
		return "best", none, nil
	}
	addr, err := netip.ParseAddr(peer)
	if err != nil {
		return "", none, exit.New(exit.Usage, "give the address of a peer, such as 10.0.0.1", fmt.Errorf("--peer %q is not an address", peer))
	}
	if advertised {
		return "advertised", addr, nil
	}
	return "received", addr, nil
}

func (a *app) printRoutes(routes []agentapi.BGPRoute, asJSON bool) error {
	if asJSON {
		return writeRows(a, routes)
	}
	if len(routes) == 0 {
		fmt.Fprintln(a.Stdout, "No BGP routes.")
		return nil
	}
	text := func(addr netip.Addr, absent string) string {
		if !addr.IsValid() {
			return absent
		}
		return addr.String()
	}
	var rows [][]string
	for _, r := range routes {
		rows = append(rows, []string{
			r.Prefix.String(), text(r.NextHop, "self"), text(r.Peer, "own"), strconv.FormatUint(uint64(r.LocalPref), 10),
			cmp.Or(r.ASPath, "-"), cmp.Or(r.Communities, "-"), text(r.Originator, "-"), routeState(r),
		})
	}
	return writeGrid(a.Stdout, []string{"PREFIX", "NEXT HOP", "FROM", "LOCALPREF", "AS PATH", "COMMUNITIES", "ORIGINATOR", "STATE"}, rows)
}

func routeState(r agentapi.BGPRoute) string {
	var words []string
	for _, w := range []struct {
		is   bool
		word string
	}{{r.Best, "best"}, {r.Multipath, "multipath"}, {r.Stale, "stale"}, {r.Refused, "refused"}, {r.Unreachable, "unreachable"}, {r.Demoted, "last choice"}} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return cmp.Or(strings.Join(words, ","), "-")
}

// writeRows writes rows of the agent's answer as they are.
func writeRows[T agentapi.BGPPeer | agentapi.BGPRoute](a *app, doc []T) error {
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return fmt.Errorf("print the agent's answer: %w", err)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
	return err
}
