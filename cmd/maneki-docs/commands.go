package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/manekinet/maneki/cmd/verbs"
	"github.com/manekinet/maneki/ctl"
)

// commandPage explains every command that is not hidden.
func commandPage() string {
	root := ctl.Root(verbs.Options("", ""))
	b := &strings.Builder{}
	b.WriteString(generated + "# Commands\n\n" +
		"Written from the code; `maneki COMMAND --help` says the same. Called as `calicoctl` or `kubectl-maneki` the program takes the same commands: [cli.md](../cli.md).\n\n" +
		"## Flags of every command\n\n")
	flagTable(b, root.PersistentFlags())
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Hidden || sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			command(b, sub)
			visit(sub)
		}
	}
	visit(root)
	return b.String()
}

func command(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "## %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n\n", strings.TrimSpace(text))
	if c.HasAvailableSubCommands() {
		b.WriteString("| | |\n|---|---|\n")
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				fmt.Fprintf(b, "| [%s](#%s) | %s |\n", sub.Name(), anchor(sub), cell(sub.Short))
			}
		}
		b.WriteString("\n")
	}
	own := false // a group of commands has none
	c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) { own = own || f.Name != "help" && !f.Hidden })
	if !c.HasAvailableSubCommands() || own {
		fmt.Fprintf(b, "```\n%s\n```\n\n", c.UseLine())
	}
	if c.Example != "" {
		fmt.Fprintf(b, "```console\n%s\n```\n\n", c.Example)
	}
	flagTable(b, c.NonInheritedFlags())
}

func anchor(c *cobra.Command) string {
	return strings.ReplaceAll(strings.ToLower(c.CommandPath()), " ", "-")
}

func flagTable(b *strings.Builder, flags *pflag.FlagSet) {
	begun := false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if !begun {
			b.WriteString("| flag | default | |\n|---|---|---|\n")
			begun = true
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		value := ""
		switch f.DefValue {
		case "", "false", "[]", "0", "0s":
		default:
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, cell(value), cell(f.Usage))
	})
	if begun {
		b.WriteString("\n")
	}
}
