package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

type getFlags struct {
	in            inputFlags
	output        string
	allNamespaces bool
	export        bool
	watch         bool
}

func (a *app) getCommand() *cobra.Command {
	var g getFlags
	var alsoAll bool
	c := &cobra.Command{
		Use:   "get (KIND [NAME...] | -f FILE)",
		Short: "Print resources",
		Long:  "Print resources of a kind, all of them or those named.\n\nKinds: " + strings.Join(kindNames(), ", ") + ".",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			g.allNamespaces = g.allNamespaces || alsoAll
			return a.get(c.Context(), &g, args)
		},
	}
	g.in.register(c)
	c.ValidArgsFunction = a.completeKindAndNames(&g.in, 0)
	f := c.Flags()
	f.StringVarP(&g.output, "output", "o", "ps", outputHelp)
	f.BoolVarP(&g.allNamespaces, "all-namespaces", "A", false, "resources of all namespaces")
	f.BoolVarP(&alsoAll, "a", "a", false, "the same as -A")
	f.Lookup("a").Hidden = true
	f.BoolVarP(&g.watch, "watch", "w", false, "print every change too, until interrupted; the first column says what happened")
	f.BoolVar(&g.export, "export", false, "leave out what belongs to this cluster only (uid, resourceVersion, times); needs NAME")
	return c
}

func kindNames() []string {
	var names []string
	for _, k := range api.Kinds() {
		names = append(names, k.Name)
	}
	return names
}

func (a *app) get(ctx context.Context, g *getFlags, args []string) error {
	show, err := printerFor(g.output)
	if err != nil {
		return err
	}
	kind, wanted, err := a.wanted(g, args)
	if err != nil {
		return err
	}
	if g.watch {
		if kind.Name == "" {
			return exit.New(exit.Usage, "give a KIND", errors.New("the resources of a file cannot be watched"))
		}
		return a.watch(ctx, g, kind, wanted)
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	read := &listing{Store: store}
	client := resource.New(read, log)
	var results []result
	var missing []error
	if wanted == nil {
		var list result
		list, err = a.list(ctx, client, g, kind)
		if list.list != nil {
			list.list.Metadata.ResourceVersion = string(read.revision(kind.Name))
		}
		results = append(results, list)
	} else {
		results, missing, err = a.fetch(ctx, client, g, wanted)
	}
	if err != nil {
		return err
	}
	if len(results) > 0 {
		c := tableContext{namespaces: g.allNamespaces || g.in.namespace != "", cells: printContext(ctx, client, results)}
		if err := show(a.Stdout, results, c); err != nil {
			return err
		}
	}
	return getError(missing)
}

// listing is a store that remembers the revision at which each kind was listed
// first.
type listing struct {
	datastore.Store
	revs  map[string]datastore.Revision
	first datastore.Revision // of any kind
}

// revision is the one at which the kind was read; a view of other data has
// theirs.
func (l *listing) revision(kind string) datastore.Revision {
	if rev := l.revs[kind]; rev != "" {
		return rev
	}
	return l.first
}

// List passes on what the store has.
func (l *listing) List(ctx context.Context, q datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	entries, rev, err := l.Store.List(ctx, q)
	if _, seen := l.revs[q.Kind]; err == nil && !seen {
		if l.revs == nil {
			l.first = rev
			l.revs = map[string]datastore.Revision{}
		}
		l.revs[q.Kind] = rev
	}
	return entries, rev, err
}

// wanted finds out which resources are asked for; nil means all of the kind.
func (a *app) wanted(g *getFlags, args []string) (api.Kind, []item, error) {
	fail := func(remedy string, err error) (api.Kind, []item, error) {
		return api.Kind{}, nil, exit.New(exit.Usage, remedy, fmt.Errorf("failed to get resources: %w", err))
	}
	if g.in.filename != "" {
		if len(args) > 0 {
			return fail("give KIND and NAME, or -f, not both", errors.New("resources are named twice"))
		}
		items, err := g.in.read(a.Stdin)
		return api.Kind{}, append([]item{}, items...), err
	}
	if len(args) == 0 {
		return fail("give a KIND: "+strings.Join(kindNames(), ", "), errNoResources)
	}
	kind, err := api.LookupKind(args[0])
	if err != nil {
		return fail("", err)
	}
	switch {
	case !kind.Namespaced && (g.allNamespaces || g.in.namespace != ""):
		return fail("leave -n and -A out", fmt.Errorf("%s is not namespaced", kind.Name))
	case g.allNamespaces && g.in.namespace != "":
		return fail("", errors.New("cannot use both --namespace and --all-namespaces flags at the same time"))
	case len(args) == 1:
		return kind, nil, nil
	case g.allNamespaces:
		return fail("say which namespace with -n", errors.New("cannot use --all-namespaces flag for getting a single resource"))
	}
	var items []item
	for _, name := range args[1:] {
		i, err := g.in.named(kind, name)
		if err != nil {
			return fail("", err)
		}
		items = append(items, i)
	}
	return kind, items, nil
}

// list reads all resources of a kind. Those that cannot be read are warned about.
func (a *app) list(ctx context.Context, client *resource.Client, g *getFlags, kind api.Kind) (result, error) {
	namespace := g.in.namespace
	if kind.Namespaced && namespace == "" && !g.allNamespaces {
		namespace = defaultNamespace
	}
	objects, problems, err := client.List(ctx, kind, namespace)
	if err != nil {
		return result{}, a.describe("get", kind.Name, fmt.Errorf("failed to get resources: %w", err))
	}
	for _, p := range problems {
		a.warn(p.Error())
	}
	if objects == nil {
		objects = []api.Object{}
	}
	return result{kind: kind, list: &List{Kind: kind.Name + "List", APIVersion: api.GroupVersion, Items: objects}}, nil
}

// fetch reads the resources named; those that are not there are in missing.
func (a *app) fetch(ctx context.Context, client *resource.Client, g *getFlags, wanted []item) (found []result, missing []error, err error) {
	for _, i := range wanted {
		m := i.object.Meta()
		o, err := client.Get(ctx, i.kind, m.Namespace, m.Name)
		switch {
		case err == nil:
		case errors.Is(err, datastore.ErrUnavailable):
			return nil, nil, a.describe("get", i.id(), err)
		default:
			missing = append(missing, a.describe("get", i.id(), err))
			continue
		}
		if g.export {
			if o, err = exported(i.kind, o); err != nil {
				return nil, nil, err
			}
		}
		found = append(found, result{kind: i.kind, object: o})
	}
	return found, missing, nil
}

// exported is the resource without what belongs to this cluster.
func exported(kind api.Kind, o api.Object) (api.Object, error) {
	c, err := copyObject(kind, o)
	if err != nil {
		return nil, err
	}
	m := c.Meta()
	m.Namespace, m.UID, m.ResourceVersion, m.CreationTimestamp, m.DeletionTimestamp = "", "", "", nil, nil
	return c, nil
}

func copyObject(kind api.Kind, o api.Object) (api.Object, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", identifierOf(o), err)
	}
	c := kind.New()
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fmt.Errorf("copy %s: %w", identifierOf(o), err)
	}
	return c, nil
}

// printContext finds the cluster's AS number, which the table of nodes shows.
func printContext(ctx context.Context, client *resource.Client, results []result) api.PrintContext {
	c := api.PrintContext{ASNumber: api.DefaultASNumber}
	for _, r := range results {
		if r.kind.Name != "Node" {
			continue
		}
		kind, err := api.LookupKind("BGPConfiguration")
		if err != nil {
			return c
		}
		o, err := client.Get(ctx, kind, "", "default")
		if err != nil {
			return c // none: the default AS holds
		}
		if b, ok := o.(*api.BGPConfiguration); ok && b.Spec.ASNumber != nil {
			c.ASNumber = uint32(*b.Spec.ASNumber)
		}
		return c
	}
	return c
}

// getError has one line per resource that was not found.
func getError(missing []error) error {
	if len(missing) == 0 {
		return nil
	}
	var lines []string
	for _, err := range missing {
		lines = append(lines, bare(err))
	}
	return exit.New(exit.Code(ExitCode(missing[0])), remedyOf(missing[0]), errors.New(strings.Join(lines, "\n")))
}
