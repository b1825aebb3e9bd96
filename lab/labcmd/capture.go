package labcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab"
	"github.com/manekinet/maneki/lab/capture"
)

const captureLong = `Print the packets of a host, container, router or subnet as tcpdump -nn does;
works without any package installed. TCP sequence numbers are absolute.

  maneki lab capture h1                        what goes over eth0 of h1
  maneki lab capture h1 icmp and host 172.18.0.12
  maneki lab capture h1 -i any -c 10 icmp      on all interfaces, ten packets
  maneki lab capture c1 -w c1.pcap tcp port 80 also into a file for other programs

Filter: [ip|ip6|arp|tcp|udp] [src|dst] host A | net CIDR | port N, ip proto N,
icmp, icmp6, arp, tcp, udp, joined by and, or, not and ( ).

Flags:
`

// captureFlags are the flags of capture.
type captureFlags struct {
	lab.CaptureOptions
	file   string
	limit  seconds
	silent bool
	asNum  int // -n and -nn, out of habit: addresses are always numbers here
}

// newCapture reads its flags itself: its -c means a count, as in tcpdump,
// while the program's own -c names a file.
func newCapture(o *options) *cobra.Command {
	c := &captureFlags{}
	set := c.flagSet(o)
	return &cobra.Command{
		Use:                "capture MEMBER [-i IFACE] [-c N] [-w FILE] [FILTER]",
		Short:              "Print packets as tcpdump does; works without any package installed",
		Long:               captureLong + strings.TrimRight(set.FlagUsages(), "\n"),
		DisableFlagParsing: true,
		Args:               cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := set.Parse(args)
			if errors.Is(err, pflag.ErrHelp) {
				return cmd.Help()
			}
			if err == nil && set.NArg() == 0 {
				err = errors.New("want the name of a host, container, router or subnet")
			}
			if err == nil && c.Count < 0 {
				err = fmt.Errorf("count %d is not allowed, want 1 or more, 0 for no end", c.Count)
			}
			if err == nil {
				c.Filter, err = capture.ParseFilter(strings.Join(set.Args()[1:], " "))
			}
			if err != nil {
				return exit.New(exit.Usage, "see 'maneki lab capture --help'", fmt.Errorf("capture: %w", err))
			}
			return c.run(cmd, o, set.Arg(0))
		},
	}
}

func (c *captureFlags) flagSet(o *options) *pflag.FlagSet {
	f := pflag.NewFlagSet("capture", pflag.ContinueOnError)
	f.Usage = func() {}
	f.StringVarP(&c.Interface, "interface", "i", "", "interface, or any (default eth0; any on routers and subnets)")
	f.IntVarP(&c.Count, "count", "c", 0, "end after this many packets, 0 for no end")
	f.Var(&c.limit, "time", "end after this time")
	f.StringVarP(&c.file, "write", "w", "", "write a pcap file as well, - for standard output instead of lines")
	f.BoolVarP(&c.silent, "quiet", "q", false, "print no lines")
	f.BoolVarP(&c.NoTime, "no-time", "t", false, "leave out the time")
	f.CountVarP(&c.asNum, "numeric", "n", "")
	_ = f.MarkHidden("numeric")
	f.StringVar(&o.name, "name", "", "name of the lab (default \"lab\")")
	f.StringVar(&o.root, "root", lab.DefaultRoot, "directory of the labs' state")
	_ = f.MarkHidden("root")
	return f
}

func (c *captureFlags) run(cmd *cobra.Command, o *options, member string) (err error) {
	l, err := lab.Open(o.root, o.name)
	if err != nil {
		return err
	}
	defer l.Close()
	c.Notes = cmd.ErrOrStderr()
	if !c.silent && c.file != "-" {
		c.Lines = cmd.OutOrStdout()
	}
	file, err := openCapture(c.file, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	if file != nil {
		c.File = file
		defer func() { err = errors.Join(err, file.Close()) }()
	}
	ctx := cmd.Context()
	if c.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.limit))
		defer cancel()
	}
	_, err = l.Capture(ctx, member, c.CaptureOptions)
	return err
}

// openCapture opens what a pcap goes to; nil without a name.
func openCapture(name string, stdout io.Writer) (io.WriteCloser, error) {
	switch name {
	case "":
		return nil, nil
	case "-":
		return keepOpen{stdout}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, exit.New(exit.Input, "", fmt.Errorf("write capture: %w", err))
	}
	return f, nil
}

// keepOpen is a writer that somebody else closes.
type keepOpen struct{ io.Writer }

// Close does nothing.
func (keepOpen) Close() error { return nil }
