package datastoretest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/manekinet/maneki/datastore"
)

// transactor is the store's, or ends the test: that a store has no transactions
// is allowed by the interface.
func (f *fixture) transactor() datastore.Transactor {
	txn, ok := f.Store.(datastore.Transactor)
	if !ok {
		f.t.Skip("this store is no Transactor")
	}
	return txn
}

func testCommitOutcomes(t *testing.T, f *fixture) {
	txn := f.transactor()
	a, b, absent := handle("a"), handle("b"), handle("absent")
	for _, c := range []struct {
		name string
		ops  func(ra, rb datastore.Revision) []datastore.Op
		want error
		key  datastore.Key // the one the error names
	}{
		{"write two, create one, delete one", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2"), If: datastore.At(ra)}, {Key: b, Delete: true, If: datastore.At(rb)}, {Key: absent, Value: []byte("2"), If: datastore.Absent()}}
		}, nil, a},
		{"checks only", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Check: true, If: datastore.At(ra)}, {Key: absent, Check: true, If: datastore.Absent()}, {Key: b, Check: true}}
		}, nil, a},
		{"create of what is there", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2"), If: datastore.At(ra)}, {Key: b, Value: []byte("2"), If: datastore.Absent()}}
		}, datastore.ErrExists, b},
		{"stale revision", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2")}, {Key: b, Value: []byte("2"), If: datastore.At(ra)}}
		}, datastore.ErrConflict, b},
		{"revision of what is gone", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2")}, {Key: absent, Value: []byte("2"), If: datastore.At(ra)}}
		}, datastore.ErrNotFound, absent},
		{"delete of what is gone", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2")}, {Key: absent, Delete: true}}
		}, datastore.ErrNotFound, absent},
		{"failed check", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: a, Value: []byte("2")}, {Key: b, Check: true, If: datastore.Absent()}}
		}, datastore.ErrExists, b},
		{"the first failure counts", func(ra, rb datastore.Revision) []datastore.Op {
			return []datastore.Op{{Key: b, Value: []byte("2"), If: datastore.At(ra)}, {Key: a, Value: []byte("2"), If: datastore.Absent()}}
		}, datastore.ErrConflict, b},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{t: t, Store: f.Store}
			ra, rb := f.put(a, "1"), f.put(b, "1")
			if f.value(absent) != "-" {
				f.remove(absent)
			}
			before := f.state()
			ops := c.ops(ra, rb)
			rev, err := txn.Commit(f.ctx(), ops)
			f.is("commit", err, c.want)
			if c.want != nil {
				if !strings.Contains(err.Error(), c.key.String()) {
					t.Errorf("the error does not name %s: %v", c.key, err)
				}
				if diff := cmp.Diff(before, f.state()); diff != "" {
					t.Errorf("a failed commit changed the store: %s", diff)
				}
				return
			}
			for _, op := range ops {
				e, err := f.Get(f.ctx(), op.Key)
				switch {
				case op.Check:
				case op.Delete:
					f.is("get of a deleted key", err, datastore.ErrNotFound)
				case err != nil || e.Rev != rev || string(e.Value) != string(op.Value):
					t.Errorf("after the commit at %s %s is %s at %s (%v)", rev, op.Key, e.Value, e.Rev, err)
				}
			}
		})
	}
}

func (f *fixture) state() map[string]string {
	f.t.Helper()
	es, _ := f.list(handles)
	m := map[string]string{}
	for _, e := range es {
		m[e.Key.Name] = string(e.Value) + "@" + string(e.Rev)
	}
	return m
}

// Money moved between accounts by many at once is neither made nor lost, at no
// moment, and a watch sees no half transaction.
func testCommitAtomic(t *testing.T, f *fixture) {
	txn := f.transactor()
	const accounts, total, movers, moves = 4, 400, 4, 20
	name := func(i int) datastore.Key { return handle("account" + strconv.Itoa(i)) }
	var ops []datastore.Op
	for i := range accounts {
		ops = append(ops, datastore.Op{Key: name(i), Value: fmt.Append(nil, total/accounts)})
	}
	_, err := txn.Commit(f.ctx(), ops)
	f.is("commit", err, nil)
	_, rev := f.list(handles)
	ctx, cancel := context.WithCancel(f.ctx())
	watch := f.Watch(ctx, rev, handles)

	var group sync.WaitGroup
	for range movers {
		group.Go(func() {
			for range moves {
				if err := move(f.ctx(), f, txn, rand.Perm(accounts), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	last := f.put(handle("end"), "0")
	cash := map[string]int{}
	for i := range accounts {
		cash[name(i).Name] = total / accounts
	}
	for done := false; !done; {
		batch, open := <-watch.Events()
		if !open {
			t.Fatal(watch.Err())
		}
		for _, e := range batch {
			cash[e.Entry.Key.Name], _ = strconv.Atoi(string(e.Entry.Value))
			done = done || e.Entry.Rev == last
		}
		sum := 0
		for _, n := range cash {
			sum += n
		}
		if sum != total {
			t.Fatalf("after a batch the watch shows %d in all: %v", sum, cash)
		}
	}
	cancel()
	f.ended(watch)
}

// move takes one from the first account to the second, retrying on conflicts.
func move(ctx context.Context, s datastore.Store, txn datastore.Transactor, who []int, name func(int) datastore.Key) error {
	for range 1000 {
		from, revFrom, err := datastore.GetJSON[int](ctx, s, name(who[0]))
		if err != nil {
			return err
		}
		to, revTo, err := datastore.GetJSON[int](ctx, s, name(who[1]))
		if err != nil {
			return err
		}
		_, err = txn.Commit(ctx, []datastore.Op{
			{Key: name(who[0]), Value: fmt.Append(nil, from-1), If: datastore.At(revFrom)},
			{Key: name(who[1]), Value: fmt.Append(nil, to+1), If: datastore.At(revTo)},
		})
		if !isConflict(err) {
			return err
		}
	}
	return fmt.Errorf("no move in 1000 attempts")
}

func testCommitLimits(t *testing.T, f *fixture) {
	txn := f.transactor()
	many := func(n int) []datastore.Op {
		var ops []datastore.Op
		for i := range n {
			ops = append(ops, datastore.Op{Key: handle(strconv.Itoa(i)), Value: []byte("1"), If: datastore.Absent()})
		}
		return ops
	}
	_, err := txn.Commit(f.ctx(), many(datastore.MaxOps))
	f.is("the largest commit", err, nil)
	x := handle("x")
	for what, ops := range map[string][]datastore.Op{
		"no operation":       nil,
		"too many":           many(datastore.MaxOps + 1),
		"one key twice":      {{Key: x, Value: []byte("1")}, {Key: x, Check: true}},
		"delete and check":   {{Key: x, Delete: true, Check: true}},
		"delete when absent": {{Key: x, Delete: true, If: datastore.Absent()}},
		"bad key":            {{Key: datastore.Key{Kind: "Nonsense", Name: "x"}, Value: []byte("1")}},
	} {
		if _, err := txn.Commit(f.ctx(), ops); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if got := f.value(x); got != "-" {
		t.Errorf("a refused commit wrote %q", got)
	}
}

// model is the specification of the verbs in a few lines: values and the number
// of the write that made them.
type model map[datastore.Key]modelValue

type modelValue struct {
	value string
	rev   datastore.Revision
}

// Random operations have the outcome that the model says.
func testModel(t *testing.T, f *fixture) {
	keys := []datastore.Key{
		handle("a"), handle("b"),
		{Kind: "IPPool", Name: "p"},
		{Kind: "WorkloadEndpoint", Namespace: "n", Name: "w"},
		{Kind: datastore.KindIPAMBlock, Name: "10.0.0.0/26"},
	}
	revs := []datastore.Revision{f.put(handle("old"), "x")}
	most := 1 // a store without transactions may stop half way
	if _, ok := f.Store.(datastore.Transactor); ok {
		most = 3
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := model{}
		for _, k := range keys {
			if err := f.Delete(f.ctx(), k, datastore.Always()); err != nil && !errors.Is(err, datastore.ErrNotFound) {
				rt.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			ops := drawOps(rt, most, keys, revs, m)
			want := m.outcome(ops)
			rev, err := datastore.Commit(f.ctx(), f.Store, ops)
			if !sameOutcome(err, want) {
				rt.Fatalf("%v: error is %v, want %v", ops, err, want)
			}
			if want == nil {
				m.apply(ops, rev)
				if rev != "" {
					revs = append(revs, rev)
				}
			}
			for _, k := range keys {
				e, err := f.Get(f.ctx(), k)
				have := modelValue{string(e.Value), e.Rev}
				if want, there := m[k]; there && (err != nil || have != want) || !there && err == nil {
					rt.Fatalf("%s is %v (%v), want %v", k, have, err, want)
				}
			}
		}
	})
}

// drawOps draws at most n operations for different keys.
func drawOps(t *rapid.T, n int, keys []datastore.Key, revs []datastore.Revision, m model) []datastore.Op {
	var ops []datastore.Op
	for _, key := range rapid.Permutation(keys).Draw(t, "keys")[:rapid.IntRange(1, n).Draw(t, "operations")] {
		op := datastore.Op{Key: key}
		switch rapid.IntRange(0, 3).Draw(t, "precondition") {
		case 0:
			op.If = datastore.Absent()
		case 1:
			op.If = datastore.At(rapid.SampledFrom(revs).Draw(t, "revision"))
		case 2:
			if v, ok := m[op.Key]; ok {
				op.If = datastore.At(v.rev)
			}
		}
		switch effect := rapid.IntRange(0, 3).Draw(t, "effect"); {
		case effect == 0:
			op.Check = true
		case effect == 1 && !op.If.IsAbsent():
			op.Delete = true
		default:
			op.Value = []byte(rapid.StringMatching(`[a-z]{0,3}`).Draw(t, "value"))
		}
		ops = append(ops, op)
	}
	return ops
}

func (m model) outcome(ops []datastore.Op) error {
	for _, op := range ops {
		v, there := m[op.Key]
		rev, at := op.If.Revision()
		switch {
		case op.If.IsAbsent() && there:
			return datastore.ErrExists
		case (at || op.Delete) && !there:
			return datastore.ErrNotFound
		case at && v.rev != rev:
			return datastore.ErrConflict
		}
	}
	return nil
}

func (m model) apply(ops []datastore.Op, rev datastore.Revision) {
	for _, op := range ops {
		switch {
		case op.Delete:
			delete(m, op.Key)
		case !op.Check:
			m[op.Key] = modelValue{string(op.Value), rev}
		}
	}
}
