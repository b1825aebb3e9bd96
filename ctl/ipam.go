package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/ipam"
)

func (a *app) ipamCommand() *cobra.Command {
	c := &cobra.Command{Use: "ipam", Short: "Inspect and repair the management of addresses"}
	group(c)
	c.AddCommand(a.ipamShowCommand(), a.ipamCheckCommand(), a.ipamReleaseCommand(), a.ipamSplitCommand(), a.ipamConfigureCommand())
	return c
}

type ipamShowFlags struct {
	ip                              string
	blocks, borrowed, configuration bool
}

func (a *app) ipamShowCommand() *cobra.Command {
	var f ipamShowFlags
	c := &cobra.Command{
		Use:   "show",
		Short: "Print how many addresses are in use, or who holds one",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return a.ipamShow(c.Context(), f) },
	}
	c.Flags().StringVar(&f.ip, "ip", "", "print who holds this address")
	c.Flags().BoolVar(&f.blocks, "show-blocks", false, "print the blocks of each pool too")
	c.Flags().BoolVar(&f.borrowed, "show-borrowed", false, "print the addresses used by another host than their block's")
	c.Flags().BoolVar(&f.configuration, "show-configuration", false, "print the configuration")
	return c
}

func (a *app) ipamShow(ctx context.Context, f ipamShowFlags) error {
	var addr netip.Addr
	if f.ip != "" {
		var err error
		if addr, err = parseAddr(f.ip); err != nil {
			return err
		}
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	client := ipam.New(store, ipam.Options{Log: log, Now: a.Now})
	switch {
	case addr.IsValid():
		err = a.showAddress(ctx, client, addr)
	case f.configuration:
		err = a.showConfiguration(ctx, client)
	case f.borrowed:
		err = a.showBorrowed(ctx, client)
	default:
		err = a.showUsage(ctx, client, f.blocks)
	}
	return a.describe("get", "IPAM", err)
}

// showAddress prints the owner of an address.
func (a *app) showAddress(ctx context.Context, client *ipam.Client, addr netip.Addr) error {
	found, err := client.Lookup(ctx, addr)
	if errors.Is(err, ipam.ErrNotAssigned) {
		fmt.Fprintf(a.Stdout, "%s is not assigned\n", addr)
		return nil
	}
	if err != nil {
		return err
	}
	handle := found.Handle
	if handle == "" {
		handle = "<none>"
	}
	fmt.Fprintf(a.Stdout, "IP %s is in use\nHandle ID: %s\n", addr, handle)
	if len(found.Attrs) == 0 {
		fmt.Fprintln(a.Stdout, "No Active Owner attributes defined")
		return nil
	}
	fmt.Fprintln(a.Stdout, "Active Owner Attributes:")
	for _, k := range sortedKeys(found.Attrs) {
		fmt.Fprintf(a.Stdout, "  %s: %s\n", k, found.Attrs[k])
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// showConfiguration prints the fields that calicoctl prints, and the cool-down
// where there is one.
func (a *app) showConfiguration(ctx context.Context, client *ipam.Client) error {
	c, err := client.Config(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{
		{"StrictAffinity", strconv.FormatBool(c.StrictAffinity)},
		{"AutoAllocateBlocks", strconv.FormatBool(c.AutoAllocateBlocks)},
		{"MaxBlocksPerHost", strconv.Itoa(c.MaxBlocksPerHost)},
	}
	var persistence string
	if raw := c.Extra[persistenceField]; len(raw) > 0 && json.Unmarshal(raw, &persistence) == nil {
		rows = append(rows, []string{"KubeVirtVMAddressPersistence", persistence})
	}
	if c.IPCooldownSeconds != 0 {
		rows = append(rows, []string{"IPCooldownSeconds", strconv.Itoa(c.IPCooldownSeconds)})
	}
	return writeGrid(a.Stdout, []string{"PROPERTY", "VALUE"}, rows)
}

func (a *app) showBorrowed(ctx context.Context, client *ipam.Client) error {
	blocks, corrupt, err := client.Blocks(ctx)
	if err != nil {
		return err
	}
	for _, problem := range corrupt {
		a.warn(problem.Error())
	}
	var rows [][]string
	unknown := 0
	for _, b := range blocks {
		_, owner, _ := strings.Cut(b.Affinity, ":")
		for _, x := range b.Allocations {
			switch {
			case x.Node == "":
				unknown++
			case x.Borrowed():
				rows = append(rows, []string{x.Addr.String(), x.Node, b.CIDR.String(), owner, x.Type(), x.AllocatedTo()})
			}
		}
	}
	header := []string{"IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"}
	if err := writeGrid(a.Stdout, header, rows); err != nil {
		return err
	}
	if unknown > 0 {
		fmt.Fprintf(a.Stdout, "\nNote: found %d IP allocations without an explicit node association. Unable to determine if they are borrowed.\n", unknown)
	}
	return nil
}

// showUsage prints pools, and with blocks their blocks, with the numbers of
// their addresses.
func (a *app) showUsage(ctx context.Context, client *ipam.Client, blocks bool) error {
	pools, err := client.Usage(ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, p := range pools {
		// Blocks that no pool covers come under an invalid CIDR.
		if p.CIDR.IsValid() {
			rows = append(rows, usageRow("IP Pool", p.CIDR, p.Total, p.InUse+p.Cooling, p.Reserved, p.Free))
		}
		if !blocks {
			continue
		}
		for _, b := range p.Blocks {
			rows = append(rows, usageRow("Block", b.CIDR, b.Total, b.InUse+b.Cooling, b.Reserved, b.Free))
		}
	}
	return writeGrid(a.Stdout, []string{"GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"}, rows)
}

// usageRow has calicoctl's numbers: five digits, and the share of the total.
// An address that cools down cannot be had yet, so the caller counts it as used.
func usageRow(grouping string, cidr netip.Prefix, total, inUse, reserved, free float64) []string {
	share := func(n float64) string { return fmt.Sprintf("%.5g (%.f%%)", n, 100*n/total) }
	return []string{grouping, cidr.String(), fmt.Sprintf("%.5g", total), share(inUse), share(reserved), share(free)}
}
