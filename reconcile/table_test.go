package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/manekinet/maneki/reconcile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is a map that can be made to fail. Keys that begin with "foreign" are somebody else's: Dump leaves them out.
type kernel struct {
	mu      sync.Mutex
	objects map[string]int
	calls   []string
	dumps   int
	fail    func(verb, key string) error // nil never fails
	refuse  map[string]bool              // keys that take a Put and do not keep it
	delay   time.Duration                // of every call
	onWrite func(verb, key string)
}

func newKernel(objects map[string]int) *kernel {
	k := &kernel{objects: map[string]int{}, refuse: map[string]bool{}}
	maps.Copy(k.objects, objects)
	return k
}

func (k *kernel) begin(verb, key string) error {
	if k.delay > 0 {
		time.Sleep(k.delay)
	}
	if k.onWrite != nil && verb != "dump" {
		k.onWrite(verb, key)
	}
	if k.fail != nil {
		return k.fail(verb, key)
	}
	return nil
}

func (k *kernel) Dump(context.Context) (map[string]int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dumps++
	if err := k.begin("dump", ""); err != nil {
		return nil, err
	}
	got := map[string]int{}
	for key, v := range k.objects {
		if !strings.HasPrefix(key, "foreign") {
			got[key] = v
		}
	}
	return got, nil
}

func (k *kernel) Put(_ context.Context, key string, v int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.begin("put", key); err != nil {
		return err
	}
	k.calls = append(k.calls, fmt.Sprintf("put %s %d", key, v))
	if !k.refuse[key] {
		k.objects[key] = v
	}
	return nil
}

func (k *kernel) Delete(_ context.Context, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.begin("delete", key); err != nil {
		return err
	}
	k.calls = append(k.calls, "delete "+key)
	delete(k.objects, key)
	return nil
}

func (k *kernel) tamper(f func(objects map[string]int)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k.objects)
}

func (k *kernel) setFail(f func(verb, key string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = f
}

func (k *kernel) snapshot() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.objects)
}

func (k *kernel) takeCalls() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	calls := k.calls
	k.calls = nil
	return calls
}

func (k *kernel) dumpCount() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dumps
}

type table = reconcile.Table[string, int]

// start runs a table in the test's bubble and stops it at the end.
func start(t testing.TB, k reconcile.Applier[string, int], opts reconcile.Options[string]) *table {
	t.Helper()
	opts.Name, opts.Compare = "objects", strings.Compare
	tab := reconcile.NewTable(k, opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tab.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return tab
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

var errInjected = errors.New("injected")

func TestDiff(t *testing.T) {
	want := map[string]int{"same": 1, "changed": 2, "new": 3}
	have := map[string]int{"same": 1, "changed": 9, "old": 4}
	adds, changes, dels := reconcile.Diff(want, have)
	equal(t, "adds", adds, map[string]int{"new": 3})
	equal(t, "changes", changes, map[string]int{"changed": 2})
	equal(t, "dels", dels, map[string]int{"old": 4})
}

func TestNothingIsWrittenBeforeTheFirstSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"old": 1, "foreign": 9})
		tab := start(t, k, reconcile.Options[string]{})
		tab.Dirty()
		time.Sleep(10 * time.Minute)
		equal(t, "calls", k.takeCalls(), []string(nil))
		equal(t, "have", tab.Have(), map[string]int{"old": 1})
		if !tab.Has("old") || tab.Has("foreign") {
			t.Error("Has disagrees with Have")
		}
		if tab.Status().InSync() {
			t.Error("in sync before anything is wanted")
		}

		tab.Set(nil) // nothing is wanted: that is not the same as no Set
		synctest.Wait()
		equal(t, "calls", k.takeCalls(), []string{"delete old"})
		equal(t, "objects", k.snapshot(), map[string]int{"foreign": 9})
	})
}

func TestNothingIsWrittenBeforeTheFirstDump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"kept": 1})
		k.fail = func(verb, _ string) error {
			if verb == "dump" {
				return errInjected
			}
			return nil
		}
		tab := start(t, k, reconcile.Options[string]{})
		tab.Set(map[string]int{"kept": 1, "new": 2})
		time.Sleep(time.Minute)
		equal(t, "calls", k.takeCalls(), []string(nil))
		st := tab.Status()
		if !errors.Is(st.DumpErr, errInjected) || st.InSync() || st.Started {
			t.Errorf("status %+v", st)
		}
		if n := k.dumpCount(); n < 5 || n > 30 {
			t.Errorf("%d listings in a minute of failure; back-off is 50 ms to 10 s", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := tab.WaitKeys(ctx, "new"); !errors.Is(err, errInjected) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v", err)
		}

		k.setFail(nil)
		time.Sleep(15 * time.Second)
		equal(t, "calls", k.takeCalls(), []string{"put new 2"})
		if !tab.Status().InSync() {
			t.Errorf("status %+v", tab.Status())
		}
	})
}

func TestPutsComeBeforeDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"a": 1, "c": 1, "e": 1})
		tab := start(t, k, reconcile.Options[string]{})
		tab.Set(map[string]int{"b": 1, "c": 2, "e": 1, "z": 1})
		synctest.Wait()
		equal(t, "calls", k.takeCalls(), []string{"put b 1", "put c 2", "put z 1", "delete a"})
		st := tab.Status()
		if !st.InSync() || st.Wanted != 4 || st.Present != 4 || st.Applied != 3 || st.Deleted != 1 || st.Healed != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSetDoesNotListAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		for i := range 1000 {
			tab.Set(map[string]int{"a": i})
			synctest.Wait()
		}
		if n := k.dumpCount(); n != 1 {
			t.Errorf("%d listings for 1000 changes, want 1", n)
		}
		equal(t, "objects", k.snapshot(), map[string]int{"a": 999})
	})
}

func TestDirtyRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		want := map[string]int{"a": 1, "b": 2, "c": 3}
		tab.Set(want)
		synctest.Wait()
		time.Sleep(time.Second)
		k.tamper(func(o map[string]int) {
			delete(o, "a")
			o["b"] = 7
			o["d"] = 8
			o["foreign"] = 9
		})
		begin := time.Now()
		tab.Dirty()
		if err := tab.WaitSynced(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := tab.WaitGone(t.Context(), "d"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 0 {
			t.Errorf("repaired after %v, want at once", d)
		}
		equal(t, "objects", k.snapshot(), map[string]int{"a": 1, "b": 2, "c": 3, "foreign": 9})
		if st := tab.Status(); st.Healed != 3 || !st.InSync() {
			t.Errorf("status %+v", st)
		}
	})
}

func TestStormOfEventsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		k.delay = 5 * time.Millisecond
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		tab.Set(nil)
		for range 1000 {
			tab.Dirty()
			time.Sleep(time.Millisecond)
		}
		if n := k.dumpCount(); n < 10 || n > 25 {
			t.Errorf("%d listings of 5 ms in one second, want about 20: a tenth of the time", n)
		}
	})
}

func TestResyncFindsWhatNobodyTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		tab := start(t, k, reconcile.Options[string]{})
		tab.Set(map[string]int{"a": 1})
		synctest.Wait()
		k.tamper(func(o map[string]int) { delete(o, "a") })
		time.Sleep(80 * time.Second)
		equal(t, "before", k.snapshot(), map[string]int{})
		time.Sleep(20 * time.Second)
		equal(t, "after", k.snapshot(), map[string]int{"a": 1})
		time.Sleep(900 * time.Second)
		if n := k.dumpCount(); n < 10 || n > 13 {
			t.Errorf("%d listings in 1000 s, want one per 90 s", n)
		}
	})
}

func TestErrorOfOneDoesNotStopOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"bad": 1, "old": 1})
		k.fail = func(_, key string) error {
			if strings.HasPrefix(key, "bad") {
				return errInjected
			}
			return nil
		}
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		tab.Set(map[string]int{"bad2": 1, "good": 1})
		synctest.Wait()
		equal(t, "objects", k.snapshot(), map[string]int{"bad": 1, "good": 1})
		st := tab.Status()
		if len(st.Failed) != 2 || !errors.Is(st.Failed["bad"], errInjected) || st.Present != 1 || st.Extra != 1 || st.InSync() {
			t.Errorf("status %+v", st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := tab.Wait(ctx, map[string]int{"bad2": 1})
		if err == nil || err.Error() != "wait for objects bad2: context deadline exceeded: put objects bad2: injected" {
			t.Errorf("wait: %v", err)
		}
		if n := tab.Status().Errors; n < 20 || n > 50 {
			t.Errorf("%d attempts in a minute, want back-off from 50 ms to 10 s for two objects", n)
		}

		k.setFail(nil)
		tab.Dirty() // an event ends the back-off: what was missing may be there now
		synctest.Wait()
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		equal(t, "objects", k.snapshot(), map[string]int{"bad2": 1, "good": 1})
		if st := tab.Status(); !st.InSync() || st.LastError == nil {
			t.Errorf("status %+v", st)
		}
	})
}

func TestNewValueEndsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		k.fail = func(string, string) error { return errInjected }
		tab := start(t, k, reconcile.Options[string]{Resync: -1, RetryMin: time.Hour, RetryMax: time.Hour})
		k.setFail(func(verb, _ string) error {
			if verb == "put" {
				return errInjected
			}
			return nil
		})
		time.Sleep(2 * time.Hour)
		tab.Set(map[string]int{"a": 1})
		synctest.Wait()
		k.setFail(nil)
		tab.Set(map[string]int{"a": 1})
		synctest.Wait()
		equal(t, "same value", k.snapshot(), map[string]int{})
		tab.Set(map[string]int{"a": 2})
		synctest.Wait()
		equal(t, "new value", k.snapshot(), map[string]int{"a": 2})
	})
}

func TestWhatIsNotKeptIsNoBusyLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		k.refuse["odd"] = true
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		k.onWrite = func(string, string) { tab.Dirty() } // every write is an event, as in netlink
		tab.Set(map[string]int{"odd": 1, "good": 1})
		time.Sleep(time.Minute)
		puts := 0
		for _, c := range k.takeCalls() {
			if strings.HasPrefix(c, "put odd") {
				puts++
			}
		}
		if puts < 5 || puts > 20 {
			t.Errorf("%d attempts in a minute, want back-off from 50 ms to 10 s", puts)
		}
		if n := k.dumpCount(); n > 50 {
			t.Errorf("%d listings in a minute", n)
		}
		st := tab.Status()
		if st.Failed["odd"] == nil || !strings.Contains(st.Failed["odd"].Error(), "not there as written") || st.InSync() {
			t.Errorf("status %+v", st)
		}

		k.tamper(func(map[string]int) { delete(k.refuse, "odd") })
		time.Sleep(15 * time.Second)
		if st := tab.Status(); !st.InSync() {
			t.Errorf("status %+v", st)
		}
	})
}

func TestTamperingOncePerSecondIsRepairedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(nil)
		tab := start(t, k, reconcile.Options[string]{Resync: -1})
		k.onWrite = func(string, string) { tab.Dirty() }
		tab.Set(map[string]int{"a": 1})
		for i := range 60 {
			time.Sleep(time.Second)
			k.tamper(func(o map[string]int) { delete(o, "a") })
			tab.Dirty()
			time.Sleep(30 * time.Millisecond)
			if k.snapshot()["a"] != 1 {
				t.Fatalf("deletion %d is not repaired", i)
			}
		}
		if st := tab.Status(); st.Healed != 60 {
			t.Errorf("%d repairs, want 60", st.Healed)
		}
	})
}

func TestHoldDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"bgp1": 81, "bgp2": 81, "own": 80})
		tab := start(t, k, reconcile.Options[string]{})
		tab.HoldDeletes(func(_ string, v int) bool { return v == 81 })
		tab.Set(map[string]int{"new": 80, "bgp2": 80})
		if err := tab.WaitSynced(t.Context()); err != nil {
			t.Fatal(err)
		}
		equal(t, "held", k.snapshot(), map[string]int{"bgp1": 81, "bgp2": 80, "new": 80})
		if st := tab.Status(); st.Held != 1 || st.Extra != 0 || !st.InSync() {
			t.Errorf("status %+v", st)
		}
		time.Sleep(10 * time.Minute) // resyncs do not delete either
		equal(t, "still held", k.snapshot()["bgp1"], 81)
		tab.HoldDeletes(nil)
		synctest.Wait()
		equal(t, "released", k.snapshot(), map[string]int{"bgp2": 80, "new": 80})
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"a": 1})
		k.delay = time.Second
		tab := start(t, k, reconcile.Options[string]{})
		results := make(chan string, 3)
		go func() {
			err := tab.Wait(t.Context(), map[string]int{"a": 2})
			results <- fmt.Sprint("a=2 ", err)
		}()
		go func() {
			err := tab.WaitKeys(t.Context(), "a")
			results <- fmt.Sprint("a ", err)
		}()
		time.Sleep(10 * time.Second)
		if len(results) != 0 {
			t.Fatal("waited for nothing: no Set yet")
		}
		tab.Set(map[string]int{"a": 1})
		synctest.Wait()
		equal(t, "keys", <-results, "a <nil>")
		time.Sleep(10 * time.Second)
		if len(results) != 0 {
			t.Fatal("an old value was taken for the new one")
		}
		tab.Set(map[string]int{"a": 2})
		equal(t, "entries", <-results, "a=2 <nil>")

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := tab.WaitKeys(ctx, "nowhere"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nowhere") {
			t.Errorf("wait: %v", err)
		}
	})
}

func TestWaiterNeedNotWaitForDeletions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"old1": 1, "old2": 1, "old3": 1})
		tab := start(t, k, reconcile.Options[string]{})
		synctest.Wait()
		k.tamper(func(map[string]int) { k.delay = time.Second })
		begin := time.Now()
		tab.Set(map[string]int{"new": 1})
		if err := tab.WaitKeys(t.Context(), "new"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("waited %v, want the time of one put", d)
		}
	})
}

func TestDeleteLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(map[string]int{"a": 1, "b": 1})
		var tab *table
		k.onWrite = func(verb, key string) {
			if verb == "delete" && key == "a" {
				tab.Set(map[string]int{"b": 1}) // wanted again while the pass is running
			}
		}
		tab = start(t, k, reconcile.Options[string]{})
		tab.Set(nil)
		synctest.Wait()
		equal(t, "calls", k.takeCalls(), []string{"delete a"})
	})
}

func TestRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := start(t, newKernel(nil), reconcile.Options[string]{})
		synctest.Wait()
		if err := tab.Run(t.Context()); err == nil {
			t.Error("a second Run gave no error")
		}
	})
}

// batchKernel takes everything at once.
type batchKernel struct {
	*kernel
	batches []int
}

func (b *batchKernel) Apply(ctx context.Context, puts []reconcile.Entry[string, int], dels []string) map[string]error {
	b.batches = append(b.batches, len(puts)+len(dels))
	errs := map[string]error{}
	for _, e := range puts {
		if err := b.Put(ctx, e.Key, e.Value); err != nil {
			errs[e.Key] = err
		}
	}
	for _, k := range dels {
		if err := b.Delete(ctx, k); err != nil {
			errs[k] = err
		}
	}
	return errs
}

func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &batchKernel{kernel: newKernel(map[string]int{"old": 1})}
		fails := 1
		b.fail = func(_, key string) error {
			if key == "flaky" && fails > 0 {
				fails--
				return errInjected
			}
			return nil
		}
		tab := start(t, b, reconcile.Options[string]{})
		tab.Set(map[string]int{"a": 1, "b": 1, "flaky": 1})
		if err := tab.WaitSynced(t.Context()); err != nil {
			t.Fatal(err)
		}
		equal(t, "batches", b.batches, []int{4, 1})
		equal(t, "calls", b.takeCalls(), []string{"put a 1", "put b 1", "delete old", "put flaky 1"})
	})
}

func TestSetCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := start(t, newKernel(nil), reconcile.Options[string]{})
		m := map[string]int{"a": 1}
		tab.Set(m)
		m["b"] = 2
		synctest.Wait()
		equal(t, "want", slices.Sorted(maps.Keys(tab.Want())), []string{"a"})
	})
}
