// Package cnicmd is the verb "maneki cni": it installs and removes what container runtimes look for.
package cnicmd

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/cni/install"
	"github.com/manekinet/maneki/cni/wire"
)

// Command returns the verb with its sub-commands.
func Command() *cobra.Command {
	c := &cobra.Command{
		Use:   "cni",
		Short: "Connect this host's container runtime to Maneki",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(installCommand(), uninstallCommand())
	return c
}

func installCommand() *cobra.Command {
	var o install.Options
	c := &cobra.Command{
		Use:   "install",
		Short: "Put the CNI plugin and its network configuration in place",
		Long: `Writes the CNI plugin maneki-cni and a network configuration list that names it, each atomically.
Container runtimes (containerd, CRI-O, podman) use it for the next container; nothing needs a restart.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			done, err := install.Install(c.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Installed %s\nInstalled %s\n", done.Program, done.Conflist)
			return nil
		},
	}
	where(c, &o)
	f := c.Flags()
	f.IntVar(&o.MTU, "mtu", 0, "MTU of containers; 0 leaves it to the agent")
	f.BoolVar(&o.IPv6, "ipv6", false, "give containers an IPv6 address as well")
	f.StringVar(&o.Socket, "socket", wire.DefaultSocket, "socket of the agent")
	f.StringVar(&o.StateDir, "state-dir", wire.DefaultStateDir, "where deletions are kept while the agent is down")
	return c
}

func uninstallCommand() *cobra.Command {
	var o install.Options
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the network configuration and the CNI plugin",
		Long: `Removes the network configuration, and the plugin unless another configuration still names it.
Containers that run keep their network; the runtime cannot remove them cleanly any more, so stop them first.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			removed, err := install.Uninstall(c.Context(), o)
			for _, path := range removed {
				fmt.Fprintf(c.OutOrStdout(), "Removed %s\n", path)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "Nothing was installed")
			}
			return err
		},
	}
	where(c, &o)
	return c
}

func where(c *cobra.Command, o *install.Options) {
	f := c.Flags()
	f.StringVar(&o.BinDir, "bin-dir", "/opt/cni/bin", "directory of CNI plugins")
	f.StringVar(&o.ConfDir, "conf-dir", "/etc/cni/net.d", "directory of network configurations")
	f.StringVar(&o.Network, "network", "maneki", "name of the network; the file is 10-<name>.conflist")
}
