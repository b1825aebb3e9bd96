package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/exit"
)

func (a *app) nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Run and inspect this host's agent"}
	group(c)
	c.AddCommand(a.nodeStatusCommand(), a.nodeDiagsCommand(), a.checksystemCommand())
	c.AddCommand(a.NodeCommands...)
	return c
}

func (a *app) nodeStatusCommand() *cobra.Command {
	var socket, output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Print the state of this host's agent and its BGP sessions",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return exit.New(exit.Usage, "use -o json, or leave it out", fmt.Errorf("unrecognized output format '%s'", output))
			}
			return a.nodeStatus(c.Context(), socket, output == "json")
		},
	}
	c.Flags().StringVar(&socket, "socket", agentapi.DefaultSocket, "where the agent listens")
	c.Flags().StringVarP(&output, "output", "o", "", "json for the whole status document")
	return c
}

func (a *app) nodeStatus(ctx context.Context, socket string, asJSON bool) error {
	s, err := a.Status(ctx, socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Denied, "run the command as root", fmt.Errorf("socket %s: permission denied", socket))
	case errors.Is(err, agentapi.ErrNotRunning):
		text := "Calico process is not running."
		if !a.compatible() {
			text += fmt.Sprintf(" Start it with '%s node run'", a.Name)
		}
		return exit.New(exit.NotRunning, "", errors.New(text))
	case err != nil:
		return fmt.Errorf("read status of the agent: %w", err)
	}
	if asJSON {
		text, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return fmt.Errorf("print status: %w", err)
		}
		_, err = fmt.Fprintf(a.Stdout, "%s\n", text)
		return err
	}
	a.warnings(s)
	return a.printStatus(s)
}

// warnings tells on stderr what is wrong with a running agent; calicoctl's
// output on stdout has no place for it.
func (a *app) warnings(s *agentapi.Status) {
	if !s.Datastore.Connected {
		a.warn(fmt.Sprintf("the datastore is not connected since %s: %s; what is configured stays as it is", s.Datastore.Since.Local().Format(time.DateTime), s.Datastore.Error))
	}
	for _, reason := range s.NotReady {
		a.warn(fmt.Sprintf("not ready: %s", reason))
	}
	for _, t := range s.Tables {
		if t.Failed > 0 {
			a.warn(fmt.Sprintf("%s: %d of %d wanted are not in the kernel: %s", t.Name, t.Failed, t.Wanted, t.LastError))
		}
	}
	for _, p := range s.Problems {
		a.warn(p)
	}
}

// printStatus writes calicoctl's report: for each family a table of its peers.
func (a *app) printStatus(s *agentapi.Status) error {
	fmt.Fprintln(a.Stdout, "Calico process is running.")
	if s.BGP != "" && s.BGP != "running" {
		fmt.Fprintf(a.Stdout, "\nThe BGP backend process is not running (%s).\n\n", s.BGP)
		a.printTunnels(s.Tunnels)
		return nil
	}
	if !a.compatible() {
		a.printRole(s)
	}
	families := []struct {
		name string
		is   func(netip.Addr) bool
	}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}}
	for _, family := range families {
		fmt.Fprintf(a.Stdout, "\n%s BGP status\n", family.name)
		var rows [][]string
		for _, p := range s.Peers {
			if family.is(p.Address.Unmap()) {
				rows = append(rows, a.peerRow(p))
			}
		}
		if len(rows) == 0 {
			fmt.Fprintf(a.Stdout, "No %s peers found.\n", family.name)
			continue
		}
		if err := writeGrid(a.Stdout, []string{"PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"}, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.Stdout)
	a.printTunnels(s.Tunnels)
	if s.Paths != nil && len(s.Paths.Paths) > 0 && !a.compatible() {
		fmt.Fprintln(a.Stdout, s.Paths.Line())
	}
	return nil
}

// printRole says what this host is where that is not simply a member of the mesh.
// calicoctl's output has no place for it.
func (a *app) printRole(s *agentapi.Status) {
	var line string
	switch s.Role {
	case agentapi.RoleReflector:
		line = "Route reflector of cluster " + s.ClusterID.String()
		if len(s.Reflectors) > 0 {
			line += ", with " + strings.Join(s.Reflectors, ", ")
		}
	case agentapi.RoleClient:
		line = "Client of the route reflectors " + strings.Join(s.Reflectors, ", ")
	}
	if line != "" {
		fmt.Fprintf(a.Stdout, "%s.\n", line)
	}
	if r := s.Reflection; r != nil {
		fmt.Fprintf(a.Stdout, "Route reflection %s, led by %s: %s.\n", r.Mode, cmp.Or(r.Leader, "nobody yet"), cmp.Or(r.Report, "nothing done yet"))
	}
}

// printTunnels is a line for each device; calicoctl's output has no place for it.
func (a *app) printTunnels(tunnels []agentapi.Tunnel) {
	if a.compatible() {
		return
	}
	for _, t := range tunnels {
		addr := "no address yet"
		if len(t.Addresses) > 0 {
			addr = "address " + t.Addresses[0].String()
		}
		hosts := "1 host"
		if t.Hosts != 1 {
			hosts = fmt.Sprintf("%d hosts", t.Hosts)
		}
		fmt.Fprintf(a.Stdout, "Tunnel %s: %s by %s, %s, MTU %d, %s\n", t.Device, t.Encapsulation, t.Implementation, addr, t.MTU, hosts)
	}
	if len(tunnels) > 0 {
		fmt.Fprintln(a.Stdout)
	}
}

const established = "Established"

func (a *app) peerRow(p agentapi.BGPPeer) []string {
	state, info := "start", p.State
	if p.State == established {
		state = "up"
	} else if p.LastError != "" {
		info += " " + p.LastError
	}
	if p.BFD != nil {
		info += ", BFD " + p.BFD.State
	}
	return []string{p.Address.Unmap().String(), p.Type, state, agentapi.Since(p.Since, a.Now()), info}
}
