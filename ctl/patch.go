package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/ctl/jsonpatch"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func (a *app) patchCommand() *cobra.Command {
	var in inputFlags
	var text, how string
	c := &cobra.Command{
		Use:   "patch KIND NAME -p PATCH",
		Short: "Change some fields of a resource",
		Long: `Change some fields of a resource.

The patch is JSON or YAML, of one of these types:

  strategic  what is in the patch is merged into the resource: null removes a
             field, a list replaces the list that is there, "$patch: replace"
             in a map replaces the map
  merge      JSON Merge Patch, RFC 7386: the same without directives
  json       JSON Patch, RFC 6902: a list of operations`,
		Example: `  patch node node-0 -p '{"spec": {"bgp": {"routeReflectorClusterID": "1.1.1.1"}}}'
  patch ippool p1 -t json -p '[{"op": "add", "path": "/spec/disabled", "value": true}]'`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			apply, err := patchType(how)
			if err != nil {
				return err
			}
			i, err := in.one(args)
			if err != nil {
				return err
			}
			patch, err := patchText(text)
			if err != nil {
				return err
			}
			return a.patch(c.Context(), i, func(doc []byte) ([]byte, error) { return apply(doc, patch) })
		},
	}
	f := c.Flags()
	f.StringVarP(&text, "patch", "p", "", "the patch, JSON or YAML")
	f.StringVarP(&how, "type", "t", "strategic", "strategic, merge or json")
	in.registerNamespace(c)
	c.ValidArgsFunction = a.completeKindAndNames(&in, 1)
	return c
}

// one is the resource named by KIND and NAME.
func (in *inputFlags) one(args []string) (item, error) {
	kind, err := api.LookupKind(args[0])
	if err != nil {
		return item{}, exit.New(exit.Usage, "", err)
	}
	return in.named(kind, args[1])
}

func patchType(name string) (func(doc, patch []byte) ([]byte, error), error) {
	switch name {
	case "strategic":
		return jsonpatch.Strategic, nil
	case "merge":
		return jsonpatch.Merge, nil
	case "json":
		return jsonpatch.Apply, nil
	}
	return nil, exit.New(exit.Usage, "use strategic, merge or json", fmt.Errorf("unrecognized patch type '%s'", name))
}

// patchText is the patch as JSON.
func patchText(text string) ([]byte, error) {
	if strings.TrimSpace(text) == "" {
		return nil, exit.New(exit.Usage, `give one with -p, such as -p '{"spec": {"disabled": true}}'`, errors.New("no patch given"))
	}
	if json.Valid([]byte(text)) {
		return []byte(text), nil
	}
	patch, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, exit.New(exit.Input, "", fmt.Errorf("the patch is neither JSON nor YAML: %s", strings.ReplaceAll(err.Error(), "\n", " ")))
	}
	return patch, nil
}

// patch changes one resource and reports.
func (a *app) patch(ctx context.Context, i item, change func(doc []byte) ([]byte, error)) error {
	err := a.edit(ctx, i, func(o api.Object) (api.Object, error) { return patched(i, o, change) })
	if err != nil {
		return exit.New(exit.Code(ExitCode(err)), remedyOf(err), fmt.Errorf("Failed to patch '%s' resource: %s", i.kind.Name, bare(err))) //nolint:staticcheck // calicoctl's wording
	}
	fmt.Fprintf(a.Stdout, "Successfully patched 1 '%s' resource\n", i.kind.Name)
	return nil
}

// edit reads a resource, lets change make the next version of it, and writes
// that. It starts again when somebody else writes meanwhile. The error is
// described.
func (a *app) edit(ctx context.Context, i item, change func(o api.Object) (api.Object, error)) error {
	if err := readOnly("update", i); err != nil {
		return a.describe("patch", i.id(), err)
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	client := resource.New(store, log)
	m := i.object.Meta()
	for attempt := 1; ; attempt++ {
		o, err := client.Get(ctx, i.kind, m.Namespace, m.Name)
		if err != nil {
			return a.describe("patch", i.id(), err)
		}
		read := o.Meta().ResourceVersion
		next, err := change(o)
		if err != nil {
			return err
		}
		pinned := next.Meta().ResourceVersion != read
		notes := impact(ctx, client, []item{{kind: i.kind, object: next}}, "patch")
		err = client.Replace(ctx, next)
		if err == nil {
			a.warnOnce(append(notes, resource.Warnings(next)...))
		}
		if err == nil || pinned || !errors.Is(err, datastore.ErrConflict) || attempt == writeAttempts {
			return a.describe("patch", i.id(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 10 * time.Millisecond):
		}
	}
}

// patched is the resource with the patch, checked as what a user typed is.
func patched(i item, o api.Object, change func(doc []byte) ([]byte, error)) (api.Object, error) {
	doc, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", i.id(), err)
	}
	text, err := change(doc)
	if err != nil {
		return nil, exit.New(exit.Input, "nothing was changed", err)
	}
	next, err := api.DecodeStrict(text)
	if err != nil {
		return nil, exit.New(exit.Input, "nothing was changed", err)
	}
	if err := sameIdentity(o, next); err != nil {
		return nil, exit.New(exit.Input, "nothing was changed", err)
	}
	return next, nil
}

// sameIdentity refuses a patch that makes another resource of it.
func sameIdentity(o, next api.Object) error {
	was, now := o.Meta(), next.Meta()
	var wrong api.FieldErrors
	for _, f := range []struct{ field, was, now string }{
		{"Kind", o.Type().Kind, next.Type().Kind},
		{"Metadata.Name", was.Name, now.Name},
		{"Metadata.Namespace", was.Namespace, now.Namespace},
		{"Metadata.UID", was.UID, now.UID},
	} {
		if f.was != f.now {
			wrong.Add(f.field, f.now, "field is immutable, it is '"+f.was+"'")
		}
	}
	return wrong.Err()
}
