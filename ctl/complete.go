package ctl

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/resource"
)

// completeTime bounds what a shell waits for when somebody presses Tab.
const completeTime = 1500 * time.Millisecond

// maxCompletions bounds how many names are offered.
const maxCompletions = 1000

type completer = func(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// completeKindAndNames offers a kind, then the names of its resources; at most
// names of them, 0 for any number.
func (a *app) completeKindAndNames(in *inputFlags, names int) completer {
	return func(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return kindWords(toComplete), cobra.ShellCompDirectiveNoFileComp
		}
		if names > 0 && len(args) > names {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		kind, err := api.LookupKind(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found := a.namesOf(c.Context(), kind, in.namespace)
		return startingWith(found, toComplete, args[1:]), cobra.ShellCompDirectiveNoFileComp
	}
}

// kindWords are the kinds as people type them, with their names.
func kindWords(toComplete string) []string {
	var words []string
	for _, k := range api.Kinds() {
		for _, word := range append([]string{k.Plural, strings.ToLower(k.Name)}, k.Aliases...) {
			// Without a beginning the plurals are enough.
			if strings.HasPrefix(word, strings.ToLower(toComplete)) && (toComplete != "" || word == k.Plural) {
				words = append(words, word+"\t"+k.Name)
			}
		}
	}
	slices.Sort(words)
	return slices.Compact(words)
}

func startingWith(words []string, start string, without []string) []string {
	var kept []string
	for _, word := range words {
		if strings.HasPrefix(word, start) && !slices.Contains(without, word) && len(kept) < maxCompletions {
			kept = append(kept, word)
		}
	}
	return kept
}

// ask opens the datastore for a completion. Nothing is printed: what fails
// offers nothing.
func (a *app) ask(ctx context.Context, do func(ctx context.Context, store datastore.Store)) {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	quiet := *a
	quiet.Stderr = io.Discard
	store, _, err := quiet.openStore(ctx)
	if err != nil {
		return
	}
	defer store.Close()
	do(ctx, store)
}

// namesOf are the names of a kind's resources, of the namespace for kinds that
// have one.
func (a *app) namesOf(ctx context.Context, kind api.Kind, namespace string) (names []string) {
	switch {
	case !kind.Namespaced:
		namespace = ""
	case namespace == "":
		namespace = defaultNamespace
	}
	a.ask(ctx, func(ctx context.Context, store datastore.Store) {
		objects, _, err := resource.New(store, nil).List(ctx, kind, namespace)
		if err != nil {
			return
		}
		for _, o := range objects {
			names = append(names, o.Meta().Name)
		}
	})
	return names
}

// completeNamesOf offers the names of one kind.
func (a *app) completeNamesOf(kindName string) completer {
	return func(c *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		kind, err := api.LookupKind(kindName)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return startingWith(a.namesOf(c.Context(), kind, ""), toComplete, nil), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNamespaces offers the namespaces that hold anything.
func (a *app) completeNamespaces(c *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	spaces := []string{defaultNamespace}
	a.ask(c.Context(), func(ctx context.Context, store datastore.Store) {
		for _, k := range api.Kinds() {
			if !k.Namespaced {
				continue
			}
			entries, _, err := store.List(ctx, datastore.Query{Kind: k.Name})
			if err != nil {
				return
			}
			for _, e := range entries {
				spaces = append(spaces, e.Key.Namespace)
			}
		}
	})
	slices.Sort(spaces)
	return startingWith(slices.Compact(spaces), toComplete, nil), cobra.ShellCompDirectiveNoFileComp
}

func oneOf(words ...string) completer {
	return func(_ *cobra.Command, _ []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		return startingWith(words, toComplete, nil), cobra.ShellCompDirectiveNoFileComp
	}
}

// registerCompletions says what the flags of the whole tree take.
func (a *app) registerCompletions(c *cobra.Command) error {
	flags := map[string]completer{
		"namespace":               a.completeNamespaces,
		"type":                    oneOf("strategic", "merge", "json"),
		"log-level":               oneOf("panic", "fatal", "error", "warn", "info", "debug"),
		"name":                    a.completeNamesOf("IPPool"),
		"focus-nodes":             a.completeNamesOf("Node"),
		"strictaffinity":          oneOf("true", "false"),
		"kubevirt-ip-persistence": oneOf("Enabled", "Disabled"),
	}
	outputs := map[string]completer{
		"get":     oneOf("ps", "wide", "yaml", "json", "custom-columns=", "go-template=", "go-template-file="),
		"convert": oneOf("yaml", "json"),
		"status":  oneOf("json"),
	}
	if f := outputs[c.Name()]; f != nil {
		flags["output"] = f
	}
	for name, complete := range flags {
		if c.LocalNonPersistentFlags().Lookup(name) == nil && (c.HasParent() || c.PersistentFlags().Lookup(name) == nil) {
			continue
		}
		if err := c.RegisterFlagCompletionFunc(name, complete); err != nil {
			return err
		}
	}
	for _, sub := range c.Commands() {
		if err := a.registerCompletions(sub); err != nil {
			return err
		}
	}
	return nil
}
