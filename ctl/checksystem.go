package ctl

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/ctl/probe"
	"github.com/manekinet/maneki/dataplane/nft"
	"github.com/manekinet/maneki/exit"
)

// System is what checksystem finds out about the machine.
type System struct {
	Release   string          // of the kernel
	Modules   map[string]bool // those of probe.Modules that are there
	Features  []probe.Result
	Leftovers []probe.Leftover
	Filters   []string // of others, that packets of workloads pass and that could drop them, in words
}

// inspect finds out about this machine. config names the kernel's configuration,
// or is empty.
func inspect(config string) (*System, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("read the kernel's version: %w", err)
	}
	s := &System{Release: unix.ByteSliceToString(name.Release[:])}
	var err error
	if s.Modules, err = (probe.Files{Release: s.Release, Config: config}).Present(); err != nil {
		return nil, exit.New(exit.Input, "", err)
	}
	if s.Features, err = probe.Kernel(); err != nil {
		return nil, err
	}
	if s.Filters, err = foreignFilters(); err != nil {
		return nil, err
	}
	s.Leftovers, err = probe.Leftovers("")
	return s, err
}

// foreignFilters are those on the way of forwarded packets.
func foreignFilters() ([]string, error) {
	chains, err := nft.Others()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range chains {
		if danger := c.Danger(); danger != "" && c.Hook == "forward" {
			out = append(out, c.String()+" "+danger)
		}
	}
	legacy, err := nft.LegacyTables()
	for _, table := range legacy {
		out = append(out, table+" is a table of the older iptables (iptables-legacy), whose rules are not looked at")
	}
	return out, err
}

func (a *app) checksystemCommand() *cobra.Command {
	var config string
	var clean bool
	c := &cobra.Command{
		Use:   "checksystem",
		Short: "Check that this host can run a node",
		Long: `Check that this host can run a node: what its kernel can do is tried in a network
namespace of its own, and the modules that Calico asks for are looked up. What the
kernel can do decides; a module that is missing is named with what takes its place.

What Calico or flannel left on this host is listed; nothing is changed. With
--clean-leftovers the interfaces, routes, rules and packet filters among it are removed,
but what is in use, what runs, and files.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.Inspect(config)
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM) {
				return exit.New(exit.Denied, "run the command as root", errors.New("Need super user privileges: Operation not permitted")) //nolint:staticcheck // calicoctl's wording
			}
			if err != nil {
				return err
			}
			if !clean {
				return printSystem(a.Stdout, s)
			}
			return errors.Join(a.cleanLeftovers(), printSystem(a.Stdout, s.withoutLeftovers()))
		},
	}
	c.Flags().StringVarP(&config, "kernel-config", "f", "", "the kernel's configuration, if it is not in one of the usual places")
	c.Flags().BoolVar(&clean, "clean-leftovers", false, "remove what a former Calico or flannel left in the kernel")
	return c
}

func (s *System) withoutLeftovers() *System {
	copied := *s
	copied.Leftovers = nil
	return &copied
}

// cleanLeftovers removes what can be removed and says what became of each.
func (a *app) cleanLeftovers() error {
	cleaned, err := probe.Clean("")
	if err != nil {
		return err
	}
	fmt.Fprintln(a.Stdout, "Cleaning what others left...")
	failed := 0
	for _, c := range cleaned {
		outcome := "removed"
		switch {
		case c.Err != nil:
			outcome = "FAILED: " + c.Err.Error()
			failed++
		case c.Keep != "":
			outcome = "kept: " + c.Keep
		}
		fmt.Fprintf(a.Stdout, "\t\t%-8s %s: %s\n", c.Of, c.What, outcome)
	}
	if failed > 0 {
		return exit.New(exit.General, "", fmt.Errorf("%d of %d leftovers could not be removed", failed, len(cleaned)))
	}
	return nil
}

// minimumKernel is the first Linux with network namespaces and veth pairs; what
// else is needed is tried.
const minimumKernel = "2.6.24"

func printSystem(w io.Writer, s *System) error {
	result := func(name, word string) { fmt.Fprintf(w, "\t\t%-20s\t\t\t\t\t%s\n", name, word) }
	word := func(ok bool) string {
		if ok {
			return "OK"
		}
		return "FAIL"
	}
	fmt.Fprintln(w, "Checking kernel version...")
	good := !olderThan(s.Release, minimumKernel)
	result(s.Release, word(good))
	if !good {
		fmt.Fprintf(w, "Minimum kernel version to run Calico is %s. Detected kernel version: %s\n", minimumKernel, s.Release)
	}
	fmt.Fprintln(w, "Checking kernel modules...")
	for _, m := range probe.Modules() {
		if !s.Modules[m.Name] {
			fmt.Fprintf(w, "WARNING: Unable to detect the %s module as Loaded/Builtin module or lsmod%s\n", m.Name, substitute(m, s.Features))
		}
		result(m.Name, word(s.Modules[m.Name]))
	}
	fmt.Fprintln(w, "Checking kernel features...")
	var missing []string
	for _, f := range s.Features {
		if !f.OK() {
			fmt.Fprintf(w, "WARNING: %s (for %s): %s%s\n", f.Feature, f.For, f.Err, instead(f))
			if f.Needed {
				missing = append(missing, f.Feature)
			}
		}
		result(f.Feature, word(f.OK()))
	}
	if len(s.Filters) > 0 {
		fmt.Fprintln(w, "Packet filters of others that forwarded packets pass besides ours:")
		for _, f := range s.Filters {
			fmt.Fprintf(w, "\t\t%s\n", f)
		}
	}
	if len(s.Leftovers) > 0 {
		fmt.Fprintln(w, "Found on this host (nothing was changed; --clean-leftovers removes what has no remark):")
		for _, l := range s.Leftovers {
			remark := ""
			if l.Keep != "" {
				remark = " (" + l.Keep + ")"
			}
			fmt.Fprintf(w, "\t\t%-8s %s%s\n", l.Of, l.What, remark)
		}
	}
	if !good || len(missing) > 0 {
		remedy := "use a newer kernel"
		if len(missing) > 0 {
			remedy = "use a kernel with " + strings.Join(missing, ", ")
		}
		return exit.New(exit.General, remedy, errors.New("system doesn't meet one or more minimum systems requirements to run Calico"))
	}
	fmt.Fprintln(w, "System meets minimum system requirements to run Calico!")
	return nil
}

// substitute says why a module need not be there.
func substitute(m probe.Module, features []probe.Result) string {
	for _, f := range features {
		if f.OK() && slices.Contains(f.Replaces, m.Name) {
			return "; " + f.Feature + " works in its place"
		}
	}
	if m.Optional {
		return "; it is optional"
	}
	return "; it is not used"
}

func instead(f probe.Result) string {
	switch {
	case f.Instead != "":
		return "; instead: " + f.Instead
	case f.Needed:
		return "; it is required"
	}
	return ""
}

var versionNumbers = regexp.MustCompile(`^\d+(\.\d+)*`)

// olderThan compares two versions number by number.
func olderThan(version, minimum string) bool {
	have := strings.Split(versionNumbers.FindString(version), ".")
	for i, text := range strings.Split(minimum, ".") {
		want, _ := strconv.Atoi(text) // a constant
		n := 0
		if i < len(have) {
			n, _ = strconv.Atoi(have[i]) // digits, by the expression, or nothing
		}
		if n != want {
			return n < want
		}
	}
	return false
}
