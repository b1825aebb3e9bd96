package ctl

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) validateCommand() *cobra.Command {
	var in inputFlags
	c := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check resources without a datastore and without writing them",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			items, err := in.read(a.Stdin)
			if err != nil {
				return err
			}
			if len(items) == 0 {
				fmt.Fprintln(a.Stdout, errNoResources)
				return nil
			}
			if err := a.checkAll("validate", items); err != nil {
				return err
			}
			return a.report(tally{verb: verb{name: "validate", past: "validated"}, kind: singleKind(items), total: len(items), done: len(items)})
		},
	}
	in.register(c)
	return c
}
