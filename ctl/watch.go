package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

// watchEvent is one line of `get -w`, with the words of Kubernetes.
type watchEvent struct {
	Type   string     `json:"type"` // ADDED, MODIFIED or DELETED
	Object api.Object `json:"object"`
}

// watcher prints the resources of a kind and then every change.
type watcher struct {
	headed bool // the table has a header, which an empty datastore shows too
	app    *app
	kind   api.Kind
	names  map[datastore.Key]bool // nil: all
	print  func(e watchEvent) error
	known  map[datastore.Key]api.Object
	lost   bool
	err    error // of printing
	stop   context.CancelFunc
}

// watch prints until the context ends.
func (a *app) watch(ctx context.Context, g *getFlags, kind api.Kind, wanted []item) error {
	if _, err := watchColumns(g, kind); err != nil {
		return err
	}
	if kind.Name == "BlockAffinity" {
		return exit.New(exit.Usage, "'ipam show --show-blocks' prints them", errors.New("BlockAffinity is a view of IPAM data, it cannot be watched"))
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	table := !slices.Contains([]string{"yaml", "yml", "json"}, g.output)
	w := &watcher{app: a, kind: kind, known: map[datastore.Key]api.Object{}, stop: stop, headed: table}
	q := datastore.Query{Kind: kind.Name}
	switch {
	case !kind.Namespaced || g.allNamespaces:
	case g.in.namespace != "":
		q.Namespace = g.in.namespace
	default:
		q.Namespace = defaultNamespace
	}
	if wanted != nil {
		w.names = map[datastore.Key]bool{}
		for _, i := range wanted {
			w.names[datastore.ObjectKey(i.object)] = true
		}
	}
	client := resource.New(store, log)
	cells := printContext(ctx, client, []result{{kind: kind}})
	if w.print, err = watchPrinter(a.Stdout, g, kind, cells); err != nil {
		return err
	}
	if kind.Name == "Profile" && (w.names == nil || w.names[datastore.Key{Kind: kind.Name, Name: api.DefaultAllowProfile}]) { // the one that nobody stores
		w.put(datastore.Key{Kind: kind.Name, Name: api.DefaultAllowProfile}, api.NewDefaultAllowProfile())
	}
	err = datastore.Follow(ctx, store, w.deliver, q)
	switch {
	case w.err != nil:
		return fmt.Errorf("print: %w", w.err)
	case ctx.Err() != nil:
		return nil
	}
	return a.describe("get", kind.Name, err)
}

// deliver takes one batch of the watch.
func (w *watcher) deliver(b datastore.Batch) {
	switch {
	case b.Err != nil && !w.lost:
		w.lost = true
		w.app.warn(fmt.Sprintf("the datastore is lost: %s; waiting for it", b.Err))
	case b.Err == nil && w.lost:
		w.lost = false
		w.app.warn("the datastore is back")
	}
	for _, e := range b.Events {
		if e.Type == datastore.EventDelete {
			w.remove(e.Entry.Key)
			continue
		}
		o, err := datastore.DecodeObject(w.kind, e.Entry)
		if err != nil {
			w.app.warn(err.Error())
			continue
		}
		if w.names != nil && !w.names[datastore.ObjectKey(o)] {
			continue // a policy's key may not have its name
		}
		w.put(e.Entry.Key, o)
	}
	if b.InSync && w.headed {
		w.headed = false
		w.emit(watchEvent{})
	}
}

func (w *watcher) put(key datastore.Key, o api.Object) {
	word := "ADDED"
	if w.known[key] != nil {
		word = "MODIFIED"
	}
	w.known[key] = o
	w.emit(watchEvent{word, o})
}

func (w *watcher) remove(key datastore.Key) {
	if o := w.known[key]; o != nil {
		delete(w.known, key)
		w.emit(watchEvent{"DELETED", o})
	}
}

// emit prints; when nobody reads any more the watch ends.
func (w *watcher) emit(e watchEvent) {
	if w.err != nil {
		return
	}
	if w.err = w.print(e); w.err != nil {
		w.stop()
	}
}

func watchPrinter(out io.Writer, g *getFlags, kind api.Kind, cells api.PrintContext) (func(watchEvent) error, error) {
	switch g.output {
	case "yaml", "yml":
		return func(e watchEvent) error {
			text, err := yaml.Marshal(e)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "---\n%s", text)
			return err
		}, nil
	case "json":
		return func(e watchEvent) error {
			text, err := json.Marshal(e)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "%s\n", text)
			return err
		}, nil
	}
	columns, err := watchColumns(g, kind)
	if err != nil {
		return nil, err
	}
	return streamTable(out, columns, cells)
}

func watchColumns(g *getFlags, kind api.Kind) ([]api.Column, error) {
	var columns []api.Column
	list, custom := strings.CutPrefix(g.output, "custom-columns=")
	switch {
	case custom:
		return columnsNamed(kind, strings.Split(list, ","))
	case strings.HasPrefix(g.output, "go-template"):
		return nil, exit.New(exit.Usage, "use ps, wide, custom-columns, yaml or json", errors.New("a watch cannot be printed with a template"))
	}
	for _, c := range kind.Columns {
		if c.Wide && g.output == "wide" || c.Narrow && g.output != "wide" {
			columns = append(columns, c)
		}
	}
	if kind.Namespaced && (g.allNamespaces || g.in.namespace != "") {
		columns = append([]api.Column{namespaceColumn()}, columns...)
	}
	return columns, nil
}

// streamTable prints a table whose rows come one by one: the header has the widths
// of the first, and a column that was too narrow is wider from then on. An event
// without an object only makes sure that the header is there.
func streamTable(out io.Writer, columns []api.Column, cells api.PrintContext) (func(watchEvent) error, error) {
	header := []string{"EVENT"}
	for _, c := range columns {
		header = append(header, c.Header)
	}
	widths := make([]int, len(header))
	widths[0] = len("MODIFIED")
	row := func(texts []string) error {
		var b strings.Builder
		for i, text := range texts {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
			b.WriteString(text + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+3))
		}
		_, err := fmt.Fprintln(out, b.String())
		return err
	}
	begun := false
	return func(e watchEvent) error {
		texts := []string{e.Type}
		if e.Object == nil {
			texts = nil
		} else {
			for _, c := range columns {
				texts = append(texts, oneLine(c.Value(e.Object, cells)))
			}
		}
		if !begun {
			for i, text := range texts {
				widths[i] = max(widths[i], utf8.RuneCountInString(text))
			}
			begun = true
			if err := row(header); err != nil {
				return err
			}
		}
		if texts == nil {
			return nil
		}
		return row(texts)
	}, nil
}
