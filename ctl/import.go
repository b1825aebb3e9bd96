package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config/strict"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func (a *app) importCommand() *cobra.Command {
	var filename string
	c := &cobra.Command{
		Use:   "import -f FILE",
		Short: "Fill an empty datastore with what export printed",
		Long: `Fill an empty datastore with what 'datastore migrate export' printed. The datastore
is locked and stays so. All of the file is checked before anything is written; an
import that was interrupted can be repeated.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if filename == "" {
				return exit.New(exit.Usage, "name a file or - with -f", errors.New("no file to import"))
			}
			x, err := a.readImport(filename)
			if err != nil {
				return err
			}
			return a.withStore(c.Context(), func(ctx context.Context, store datastore.Store) error { return a.importAll(ctx, store, x) })
		},
	}
	c.Flags().StringVarP(&filename, "filename", "f", "", "file to import, - for stdin")
	return c
}

// imported is a file that has been read and checked.
type imported struct {
	items []item
	info  api.ClusterInformation
	pairs []datastore.Entry // IPAM data, in the order to write it in
}

func (a *app) readImport(filename string) (*imported, error) {
	fail := func(err error) (*imported, error) {
		return nil, exit.New(exit.Input, "nothing was changed", fmt.Errorf("Error while reading migration file: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	var text []byte
	var err error
	if filename == "-" {
		filename = "stdin"
		text, err = readBounded(a.Stdin, filename, 0)
	} else {
		text, err = readFile(filename)
	}
	if err != nil {
		return fail(err)
	}
	parts := bytes.Split(text, []byte(exportSeparator))
	if len(parts) != 3 {
		return fail(fmt.Errorf("Imported file: %s is improperly formatted. Try recreating with '%s datastore migrate export'", filename, a.Name)) //nolint:staticcheck // calicoctl's wording
	}
	x := &imported{}
	for _, d := range strict.Split(filename, parts[0]) {
		items, err := (&inputFlags{}).parse(d)
		if err != nil {
			return fail(err)
		}
		x.items = append(x.items, items...)
	}
	if len(x.items) > 0 {
		if err := a.checkAll("import", x.items); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(parts[1], &x.info); err != nil {
		return fail(fmt.Errorf("Error reading exported cluster info for migration: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	if x.pairs, err = readPairs(parts[2]); err != nil {
		return fail(fmt.Errorf("Failed to read IPAM resources: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	return x, nil
}

// readPairs reads and checks the IPAM data.
func readPairs(text []byte) ([]datastore.Entry, error) {
	var data ipamExport
	if err := json.Unmarshal(text, &data); err != nil {
		return nil, err
	}
	var entries []datastore.Entry
	add := func(kind string, p ipamPair, form func(value []byte) error) error {
		key, err := datastore.ParsePath(p.Key)
		if err != nil {
			return err
		}
		if key.Kind != kind {
			return fmt.Errorf("%s is among the values of kind %s", p.Key, kind)
		}
		if err := form(p.Value); err != nil {
			return fmt.Errorf("%s: %w", p.Key, err)
		}
		var value bytes.Buffer
		if err := json.Compact(&value, p.Value); err != nil {
			return fmt.Errorf("%s: %w", p.Key, err)
		}
		entries = append(entries, datastore.Entry{Key: key, Value: value.Bytes()})
		return nil
	}
	for _, part := range []struct {
		kind  string
		pairs []ipamPair
		form  func(value []byte) error
	}{
		{datastore.KindBlockAffinity, data.Affinities, hasForm[api.BlockAffinity]},
		{datastore.KindIPAMBlock, data.Blocks, hasForm[api.IPAMBlock]},
		{datastore.KindIPAMHandle, data.Handles, hasForm[api.IPAMHandle]},
	} {
		for _, p := range part.pairs {
			if err := add(part.kind, p, part.form); err != nil {
				return nil, err
			}
		}
	}
	if data.Config != nil {
		return entries, add(datastore.KindIPAMConfig, *data.Config, hasForm[api.IPAMConfig])
	}
	return entries, nil
}

// hasForm reports what keeps a value from being a T.
func hasForm[T any](value []byte) error {
	if !bytes.HasPrefix(bytes.TrimSpace(value), []byte("{")) {
		return errors.New("the value is not an object")
	}
	var v T
	return json.Unmarshal(value, &v)
}

func (a *app) importAll(ctx context.Context, store datastore.Store, x *imported) error {
	client := resource.New(store, nil)
	if err := a.checkEmpty(ctx, store, x); err != nil {
		return err
	}
	if _, err := client.EnsureInitialized(ctx, "", ""); err != nil {
		return a.describe("create", "ClusterInformation", fmt.Errorf("Unable to initialize cluster information for the datastore migration: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	if err := a.setReady(ctx, store, false); err != nil {
		return err
	}
	if len(x.items) > 0 {
		if err := a.run(ctx, client, x.items, verb{name: "import", past: "applied", stops: true, do: applyOne}); err != nil {
			return exit.New(exit.Code(ExitCode(err)), "repair the cause and repeat the command", errors.New(bare(err)))
		}
	}
	_, err := datastore.For[api.ClusterInformation](store).Modify(ctx, "", "default", func(info *api.ClusterInformation) error {
		info.Spec.ClusterGUID, info.Spec.CalicoVersion = x.info.Spec.ClusterGUID, x.info.Spec.CalicoVersion
		return nil
	})
	if err != nil {
		return a.describe("update", "ClusterInformation", fmt.Errorf("Failed to update cluster information: %w", err)) //nolint:staticcheck // calicoctl's wording
	}
	fmt.Fprintln(a.Stdout, "Importing IPAM resources")
	if err := a.importPairs(ctx, store, x.pairs); err != nil {
		return a.describe("create", "IPAM", err)
	}
	fmt.Fprintf(a.Stdout, "Successfully applied %d IPAM resource(s)\n", len(x.pairs))
	fmt.Fprintln(a.Stdout, "Datastore information successfully imported. Please refer to the datastore migration documentation for next steps.")
	return nil
}

// builtInTier reports the tiers that every datastore has.
func builtInTier(kind, name string) bool {
	return kind == "Tier" && slices.Contains([]string{"default", "kube-admin", "kube-baseline"}, name)
}

// checkEmpty refuses a datastore that holds what is not in the file, or is other
// there. What an interrupted import left is neither.
func (a *app) checkEmpty(ctx context.Context, store datastore.Store, x *imported) error {
	ours := map[datastore.Key]api.Object{}
	for _, i := range x.items {
		ours[datastore.ObjectKey(i.object)] = i.object
	}
	found := func(what string) error {
		return exit.New(exit.Conflict, "import into an empty datastore", fmt.Errorf("Datastore already has Calico resources: Found existing Calico %s", what)) //nolint:staticcheck // calicoctl's wording
	}
	for _, k := range exportedKinds(true) {
		objects, _, problems, err := datastore.ListObjects(ctx, store, k, "")
		if err != nil {
			return a.describe("get", k.Name, err)
		}
		if len(problems) > 0 {
			return found(k.Name + " resource")
		}
		for _, o := range objects {
			if builtInTier(k.Name, o.Meta().Name) {
				continue
			}
			if same := ours[datastore.ObjectKey(o)]; same == nil || !sameContent(o, same) {
				return found(k.Name + " resource")
			}
		}
	}
	values := map[datastore.Key][]byte{}
	for _, e := range x.pairs {
		values[e.Key] = e.Value
	}
	for _, kind := range []string{datastore.KindBlockAffinity, datastore.KindIPAMBlock, datastore.KindIPAMHandle, datastore.KindIPAMConfig} {
		entries, _, err := store.List(ctx, datastore.Query{Kind: kind})
		if err != nil {
			return a.describe("get", "IPAM", err)
		}
		if slices.ContainsFunc(entries, func(e datastore.Entry) bool { return !sameValue(e, values[e.Key]) }) {
			return found("IPAM resources")
		}
	}
	return nil
}

// sameContent compares two resources without what a datastore adds.
func sameContent(a, b api.Object) bool {
	var forms [2]map[string]any
	for i, o := range []api.Object{a, b} {
		text, err := json.Marshal(o)
		if err != nil || json.Unmarshal(text, &forms[i]) != nil {
			return false
		}
		meta, _ := forms[i]["metadata"].(map[string]any)
		for _, field := range []string{"uid", "resourceVersion", "creationTimestamp"} {
			delete(meta, field)
		}
		labels, _ := meta["labels"].(map[string]any)
		for key := range labels {
			if key == api.LabelTier || key == api.LabelNamespace || key == api.LabelOrchestrator {
				delete(labels, key)
			}
		}
		if len(labels) == 0 {
			delete(meta, "labels")
		}
	}
	return reflect.DeepEqual(forms[0], forms[1])
}

// sameValue reports whether a stored value is the one of the export, which
// writes the empty claims of old releases out.
func sameValue(stored datastore.Entry, value []byte) bool {
	if stored.Key.Kind == datastore.KindBlockAffinity && len(stored.Value) == 0 {
		var b api.BlockAffinity
		return json.Unmarshal(value, &b) == nil && b == api.BlockAffinity{State: api.AffinityConfirmed}
	}
	return bytes.Equal(stored.Value, value)
}

// importBytes bounds one transaction; etcd refuses more than 1.5 MiB.
const importBytes = 512 << 10

// importPairs stores the IPAM data that is not there yet.
func (a *app) importPairs(ctx context.Context, store datastore.Store, pairs []datastore.Entry) error {
	bar := a.progress("IPAM resources", len(pairs))
	defer bar.end()
	var ops []datastore.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := datastore.Commit(ctx, store, ops)
		ops, size = nil, 0
		return err
	}
	for _, e := range pairs {
		bar.add(1)
		have, err := store.Get(ctx, e.Key)
		if err == nil && sameValue(have, e.Value) {
			continue
		}
		if err != nil && !isNotFound(err) {
			return err
		}
		if len(ops) == datastore.MaxOps || size+len(e.Value) > importBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		ops = append(ops, datastore.Op{Key: e.Key, Value: e.Value, If: datastore.Absent()})
		size += len(e.Value)
	}
	return flush()
}
