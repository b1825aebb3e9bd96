package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

func isNotFound(err error) bool { return errors.Is(err, datastore.ErrNotFound) }

func (a *app) diffCommand() *cobra.Command {
	var in inputFlags
	var exitCode bool
	c := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Print what apply would change",
		Long: `Print what apply would change, as a unified diff of the stored YAML. Nothing is
written. Resources that would stay as they are are left out.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			changes, err := a.rehearse(c.Context(), &in, verb{name: "apply", past: "applied", do: applyOne})
			if err != nil {
				return err
			}
			return a.printDiff(changes, exitCode)
		},
	}
	in.register(c)
	c.Flags().BoolVar(&exitCode, "exit-code", false, "end with 1 if there are differences")
	return c
}

// change is what a verb would do to one resource.
type change struct {
	item          item
	before, after string // YAML without what the store decides; before is empty for a new resource
}

func (c change) word() string {
	switch {
	case c.before == "":
		return "would be created"
	case c.before != c.after:
		return "would be changed"
	}
	return "would stay as it is"
}

// rehearse lets the verb work on an overlay of the datastore.
func (a *app) rehearse(ctx context.Context, in *inputFlags, v verb) ([]change, error) {
	items, err := a.checkedInput(in, v.name)
	if err != nil || len(items) == 0 {
		return nil, err
	}
	store, log, err := a.openStore(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	over := newOverlay(store)
	client := resource.New(over, log)
	if err := a.checkPools(ctx, client, v.name, items); err != nil {
		return nil, err
	}
	var changes []change
	t := tally{verb: v, kind: singleKind(items), total: len(items)}
	for _, i := range items {
		c := change{item: i}
		if c.before, err = storedYAML(ctx, client, i); err != nil {
			return nil, a.describe(v.name, i.id(), err)
		}
		if err := v.do(ctx, client, i); err != nil {
			t.errs = append(t.errs, a.describe(v.name, i.id(), err))
			continue
		}
		if c.after, err = storedYAML(ctx, client, i); err != nil {
			return nil, a.describe(v.name, i.id(), err)
		}
		changes = append(changes, c)
	}
	if len(t.errs) > 0 {
		return nil, a.failure(t)
	}
	return changes, nil
}

// storedYAML is the resource as it is stored, without what the store decides;
// empty if there is none.
func storedYAML(ctx context.Context, client *resource.Client, i item) (string, error) {
	m := i.object.Meta()
	o, err := client.Get(ctx, i.kind, m.Namespace, m.Name)
	if isNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	m = o.Meta()
	m.UID, m.ResourceVersion, m.CreationTimestamp = "", "", nil
	return toYAML(o)
}

func toYAML(o api.Object) (string, error) {
	text, err := yaml.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("print %s: %w", identifierOf(o), err)
	}
	return string(text), nil
}

// printDryRun prints one line for each resource, and how many there are.
func (a *app) printDryRun(v verb, changes []change) {
	var items []item
	for _, c := range changes {
		fmt.Fprintf(a.Stdout, "%s %s\n", c.item.id(), c.word())
		items = append(items, c.item)
	}
	of := "resource(s)"
	if kind := singleKind(items); kind != "" {
		of = fmt.Sprintf("'%s' resource(s)", kind)
	}
	fmt.Fprintf(a.Stdout, "Dry run: %d %s would be %s, nothing was changed\n", len(changes), of, v.past)
}

func (a *app) printDiff(changes []change, exitCode bool) error {
	differ := 0
	for _, c := range changes {
		if c.before == c.after {
			continue
		}
		differ++
		old := "stored " + c.item.id()
		if c.before == "" {
			old = "/dev/null"
		}
		if err := writeUnified(a.Stdout, old, c.item.where+" "+c.item.id(), c.before, c.after); err != nil {
			return err
		}
	}
	if exitCode && differ > 0 {
		return exit.New(exit.General, "", fmt.Errorf("%d of %d resources differ", differ, len(changes)))
	}
	return nil
}

// diffContext is how many equal lines are printed around a difference.
const diffContext = 3

// maxDiffCells bounds the table of the comparison; longer texts are shown as
// replaced from the first to the last difference.
const maxDiffCells = 4 << 20

// edit is one line of a comparison: ' ' in both, '-' in the first, '+' in the
// second.
type edit struct {
	mark byte
	line string
}

// writeUnified prints a unified diff.
func writeUnified(w io.Writer, oldName, newName, before, after string) error {
	edits := compareLines(lines(before), lines(after))
	fmt.Fprintf(w, "--- %s\n+++ %s\n", oldName, newName)
	for start := 0; start < len(edits); {
		first := start
		for first < len(edits) && edits[first].mark == ' ' {
			first++
		}
		if first == len(edits) {
			break
		}
		from := max(start, first-diffContext)
		end, quiet := first, 0 // end: after the last difference of the hunk
		for i := first; i < len(edits) && quiet <= 2*diffContext; i++ {
			quiet++
			if edits[i].mark != ' ' {
				end, quiet = i+1, 0
			}
		}
		to := min(len(edits), end+diffContext)
		if err := writeHunk(w, edits, from, to); err != nil {
			return err
		}
		start = to
	}
	return nil
}

func writeHunk(w io.Writer, edits []edit, from, to int) error {
	oldStart, newStart, oldLen, newLen := 1, 1, 0, 0
	for i, e := range edits[:to] {
		inOld, inNew := e.mark != '+', e.mark != '-'
		switch {
		case i < from && inOld && inNew:
			oldStart, newStart = oldStart+1, newStart+1
		case i < from && inOld:
			oldStart++
		case i < from:
			newStart++
		case inOld && inNew:
			oldLen, newLen = oldLen+1, newLen+1
		case inOld:
			oldLen++
		default:
			newLen++
		}
	}
	if oldLen == 0 {
		oldStart--
	}
	if newLen == 0 {
		newStart--
	}
	var b strings.Builder
	fmt.Fprintf(&b, "@@ -%d,%d +%d,%d @@\n", oldStart, oldLen, newStart, newLen)
	for _, e := range edits[from:to] {
		fmt.Fprintf(&b, "%c%s\n", e.mark, e.line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// compareLines finds a longest common subsequence.
func compareLines(a, b []string) []edit {
	var head, tail []edit
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, edit{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		tail = append([]edit{{' ', a[len(a)-1]}}, tail...)
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if (len(a)+1)*(len(b)+1) > maxDiffCells {
		return append(replaced(head, a, b), tail...)
	}
	common := make([][]int32, len(a)+1) // of a[i:] and b[j:]
	for i := range common {
		common[i] = make([]int32, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		switch {
		case a[i] == b[j]:
			head = append(head, edit{' ', a[i]})
			i, j = i+1, j+1
		case common[i+1][j] >= common[i][j+1]:
			head = append(head, edit{'-', a[i]})
			i++
		default:
			head = append(head, edit{'+', b[j]})
			j++
		}
	}
	return append(replaced(head, a[i:], b[j:]), tail...)
}

func replaced(edits []edit, a, b []string) []edit {
	for _, line := range a {
		edits = append(edits, edit{'-', line})
	}
	for _, line := range b {
		edits = append(edits, edit{'+', line})
	}
	return edits
}
