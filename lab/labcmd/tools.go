package labcmd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab/nettool"
)

// interruptible ends a command on the first ^C in an orderly way: a tool still
// prints its summary, a lab that is being built is removed.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
}

// seconds reads a flag as ping does: a number of seconds, or 200ms.
type seconds time.Duration

// String prints the value as it is written.
func (s *seconds) String() string { return time.Duration(*s).String() }

// Type is the word in the help text.
func (s *seconds) Type() string { return "seconds" }

// Set reads a number of seconds or a Go duration.
func (s *seconds) Set(text string) error {
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		*s = seconds(f * float64(time.Second))
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("want seconds or a duration such as 200ms")
	}
	*s = seconds(d)
	return nil
}

// newPing reads its flags itself: its -c means a count, as everywhere, while
// the program's own -c names a file.
func newPing() *cobra.Command {
	p := &pingFlags{interval: seconds(time.Second), wait: seconds(time.Second)}
	set := p.flagSet()
	return &cobra.Command{
		Use:                "ping [-c N] [-i INTERVAL] [-W WAIT] [-s SIZE] [-q] [-I SOURCE] [--df] ADDRESS",
		Short:              "Send ICMP echo requests; works without any package installed",
		Long:               "Send ICMP echo requests; works without any package installed.\n\nFlags:\n" + strings.TrimRight(set.FlagUsages(), "\n"),
		DisableFlagParsing: true,
		Args:               cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := set.Parse(args)
			if errors.Is(err, pflag.ErrHelp) {
				return cmd.Help()
			}
			if err == nil && set.NArg() != 1 {
				err = fmt.Errorf("want one address, got %d", set.NArg())
			}
			if err != nil {
				return exit.New(exit.Usage, "see 'maneki lab ping --help'", fmt.Errorf("ping: %w", err))
			}
			return p.run(cmd, set.Arg(0))
		},
	}
}

// pingFlags are the flags of ping.
type pingFlags struct {
	nettool.PingOptions
	interval, wait seconds
	source         string
}

func (p *pingFlags) flagSet() *pflag.FlagSet {
	f := pflag.NewFlagSet("ping", pflag.ContinueOnError)
	f.Usage = func() {}
	f.IntVarP(&p.Count, "count", "c", 0, "packets to send, 0 for no end")
	f.VarP(&p.interval, "interval", "i", "time between packets")
	f.VarP(&p.wait, "wait", "W", "time to wait for the last answers")
	f.IntVarP(&p.Size, "size", "s", 56, "data bytes in a packet")
	f.BoolVarP(&p.Quiet, "quiet", "q", false, "print only the summary")
	f.BoolVar(&p.DontFragment, "df", false, "do not fragment")
	f.StringVarP(&p.source, "source", "I", "", "source address")
	return f
}

func (p *pingFlags) run(cmd *cobra.Command, target string) error {
	dst, err := nettool.ParseTarget(target)
	if err != nil {
		return exit.New(exit.Usage, "", err)
	}
	if p.source != "" {
		if p.Source, err = netip.ParseAddr(p.source); err != nil {
			return exit.New(exit.Usage, "", fmt.Errorf("source %q is not an IP address", p.source))
		}
	}
	p.Interval, p.Wait = time.Duration(p.interval), time.Duration(p.wait)
	if err := p.Check(); err != nil {
		return exit.New(exit.Usage, "", err)
	}
	res, err := nettool.Ping(cmd.Context(), cmd.OutOrStdout(), dst, p.PingOptions)
	if err == nil && res.Received == 0 {
		return fmt.Errorf("no answer from %s", dst)
	}
	return err
}

func newListen() *cobra.Command {
	var o nettool.ListenOptions
	var port uint16
	var address string
	cmd := &cobra.Command{
		Use:   "listen",
		Short: "Answer connections with the address they come from",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var a netip.Addr
			if address != "" {
				var err error
				if a, err = netip.ParseAddr(address); err != nil {
					return exit.New(exit.Usage, "", fmt.Errorf("address %q is not an IP address", address))
				}
			}
			o.Address = netip.AddrPortFrom(a, port)
			return nettool.Listen(ctx, cmd.OutOrStdout(), o)
		},
	}
	f := cmd.Flags()
	f.Uint16VarP(&port, "port", "p", 8080, "port to listen on")
	f.StringVarP(&address, "address", "a", "", "address to listen on (default: all)")
	f.BoolVarP(&o.UDP, "udp", "u", false, "UDP instead of TCP")
	f.IntVar(&o.Count, "count", 0, "end after this many, 0 for no end")
	return cmd
}

func newConnect() *cobra.Command {
	var o nettool.ConnectOptions
	wait := seconds(3 * time.Second)
	cmd := &cobra.Command{
		Use:   "connect ADDRESS:PORT",
		Short: "Call a `lab listen` and print the address it saw",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := netip.ParseAddrPort(args[0])
			if err != nil {
				return exit.New(exit.Usage, "", fmt.Errorf("%q is not allowed, want ADDRESS:PORT or [IPV6]:PORT", args[0]))
			}
			ctx := cmd.Context()
			o.Wait = time.Duration(wait)
			answer, err := nettool.Connect(ctx, to, o)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&o.UDP, "udp", "u", false, "UDP instead of TCP")
	cmd.Flags().VarP(&wait, "wait", "W", "time to wait")
	return cmd
}

func newAddr() *cobra.Command {
	return &cobra.Command{
		Use:   "addr [DEVICE]",
		Short: "List interfaces and addresses of this namespace, like ip addr",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			device := ""
			if len(args) == 1 {
				device = args[0]
			}
			return nettool.Addresses(cmd.OutOrStdout(), device)
		},
	}
}

func newRoutes() *cobra.Command {
	var v6 bool
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "List routes of this namespace, like ip route",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return nettool.Routes(cmd.OutOrStdout(), v6) },
	}
	cmd.Flags().BoolVarP(&v6, "ipv6", "6", false, "IPv6 routes")
	return cmd
}
