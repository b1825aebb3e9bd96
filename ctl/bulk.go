package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

// verb is one of the verbs that work on a list of resources.
type verb struct {
	name string // "apply"
	past string // "applied"
	// stops says that the first failure ends the work (calicoctl's replace);
	// the other verbs go on with the next resource.
	stops bool
	force bool // also where it cuts what the network is operated by
	do    func(ctx context.Context, c *resource.Client, i item) error
}

// tally counts what a verb did.
type tally struct {
	verb  verb
	kind  string // the kind, if there is only one
	total int
	done  int
	errs  []error // described
}

// write reads the input, validates all of it, then lets the verb work on one
// resource after the other and reports as calicoctl does.
func (a *app) write(ctx context.Context, in *inputFlags, v verb) error {
	items, err := a.checkedInput(in, v.name)
	if err != nil || len(items) == 0 {
		return err
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	client := resource.New(store, log)
	if err := a.checkPools(ctx, client, v.name, items); err != nil {
		return err
	}
	if !v.force {
		if err := a.checkLifelines(ctx, store, items, v); err != nil {
			return err
		}
	}
	// As calicoctl: a user who may not write the cluster's own objects may still
	// write his.
	if _, err := client.EnsureInitialized(ctx, "", ""); err != nil {
		log.Info("initialize datastore", "err", err)
	}
	return a.run(ctx, client, items, v)
}

// checkedInput reads the input and validates all of it. Without an error there
// may be none; that has been said then.
func (a *app) checkedInput(in *inputFlags, verb string) ([]item, error) {
	items, err := in.read(a.Stdin)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		fmt.Fprintln(a.Stdout, errNoResources)
		return nil, nil
	}
	return items, a.checkAll(verb, items)
}

// run lets the verb work and reports.
func (a *app) run(ctx context.Context, client *resource.Client, items []item, v verb) error {
	t := tally{verb: v, kind: singleKind(items), total: len(items)}
	bar := a.progress("resources", len(items))
	notes := impact(ctx, client, items, v.name)
	for _, i := range items {
		err := v.do(ctx, client, i)
		bar.add(1)
		if err == nil {
			t.done++
			notes = append(notes, resource.Warnings(i.object)...)
			continue
		}
		t.errs = append(t.errs, a.describe(v.name, i.id(), err))
		if v.stops || errors.Is(err, datastore.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	bar.end()
	a.warnOnce(notes)
	return a.report(t)
}

// warnOnce prints warnings, each different one once.
func (a *app) warnOnce(notes []string) {
	for i, note := range notes {
		if !slices.Contains(notes[:i], note) {
			a.warn(note)
		}
	}
}

func singleKind(items []item) string {
	kind := ""
	for _, i := range items {
		if kind != "" && kind != i.kind.Name {
			return ""
		}
		kind = i.kind.Name
	}
	return kind
}

// report prints the result lines of spec/calico.md §7.
func (a *app) report(t tally) error {
	of := "resources"
	if t.kind != "" {
		of = "'" + t.kind + "' resources"
	}
	if len(t.errs) == 0 {
		fmt.Fprintf(a.Stdout, "Successfully %s %d %s(s)\n", t.verb.past, t.done, strings.TrimSuffix(of, "s"))
		return nil
	}
	if t.done > 0 {
		fmt.Fprintf(a.Stdout, "Partial success: %s the first %d out of %d %s:\n", t.verb.past, t.done, t.total, of)
	}
	return a.failure(t)
}

// failure is the error of a verb that did not do all it should.
func (a *app) failure(t tally) error {
	of := "resources"
	if t.kind != "" {
		of = "'" + t.kind + "' resources"
	}
	var err error
	switch {
	case t.done > 0:
		err = fmt.Errorf("hit error: %s", bracketed(t.errs))
	case t.total == 1:
		err = fmt.Errorf("failed to %s %s: %s", t.verb.name, strings.TrimSuffix(of, "s"), bracketed(t.errs))
	default:
		err = fmt.Errorf("failed to %s any %s: %s", t.verb.name, of, bracketed(t.errs))
	}
	return exit.New(exit.Code(ExitCode(t.errs[0])), remedyOf(t.errs[0]), err)
}

// checkAll finds what is wrong with the resources before anything is written.
func (a *app) checkAll(verb string, items []item) error {
	var errs []error
	seen := make(map[string]string)
	for _, i := range items {
		if err := checkOne(verb, i); err != nil {
			errs = append(errs, locate(err, i, len(items)))
		}
		if first, ok := seen[i.id()]; ok {
			errs = append(errs, fmt.Errorf("%s: %s is there twice, first at %s", i.where, i.id(), first))
		}
		seen[i.id()] = i.where
	}
	if len(errs) == 0 {
		return nil
	}
	return refuse(verb, items, errs)
}

// refuse reports resources of which none was written.
func refuse(verb string, items []item, errs []error) error {
	of := "resources"
	if kind := singleKind(items); kind != "" {
		of = "'" + kind + "' resources"
	}
	if len(items) == 1 {
		return exit.New(exit.Input, "", fmt.Errorf("failed to %s %s: %s", verb, strings.TrimSuffix(of, "s"), bracketed(errs)))
	}
	return exit.New(exit.Input, "nothing was changed", fmt.Errorf("failed to %s any %s: %s", verb, of, bracketed(errs)))
}

// locate adds file, line and name where there is more than one resource.
func locate(err error, i item, total int) error {
	if total == 1 {
		return err
	}
	return fmt.Errorf("%s: %s: %w", i.where, i.id(), err)
}

func checkOne(verb string, i item) error {
	m := i.object.Meta()
	var wrong api.FieldErrors
	switch {
	case m.GenerateName != "":
		wrong.Add("Metadata.GenerateName", m.GenerateName, "generated names are not supported, set name")
	case m.Name == "":
		wrong.Add("Metadata.Name", "", "name is missing")
	case verb == "create" && m.ResourceVersion != "":
		wrong.Add("Metadata.ResourceVersion", m.ResourceVersion, "field must not be set for a Create request, remove it or use apply")
	}
	if err := wrong.Err(); err != nil {
		return err
	}
	if err := readOnly(verb, i); err != nil {
		return err
	}
	i.object.Default()
	return i.object.Validate()
}

// readOnly refuses the kinds that only the system itself writes.
func readOnly(verb string, i item) error {
	if i.kind.Name != "ClusterInformation" {
		return nil
	}
	return &resource.Error{Class: resource.ErrUnsupported, Operation: verb, Kind: i.kind.Name, Name: i.kind.Name, Reason: "resource is readonly"}
}
