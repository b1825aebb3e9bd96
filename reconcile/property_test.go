package reconcile_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/reconcile"
)

var (
	keys    = rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	objects = rapid.MapOf(keys, rapid.IntRange(1, 3))
	// steps are drawn before the test enters its bubble of time, so that rapid can shrink them.
	steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			kind:   rapid.IntRange(0, 6).Draw(t, "kind"),
			want:   objects.Draw(t, "want"),
			key:    keys.Draw(t, "key"),
			value:  rapid.IntRange(0, 3).Draw(t, "value"),
			verb:   rapid.SampledFrom([]string{"put", "delete", "dump", "any", "none"}).Draw(t, "verb"),
			event:  rapid.Bool().Draw(t, "event"),
			settle: rapid.Bool().Draw(t, "settle"),
			sleep:  time.Duration(rapid.IntRange(1, 20_000).Draw(t, "ms")) * time.Millisecond,
		}
	}), 1, 30)
)

type step struct {
	kind          int
	want          map[string]int
	key, verb     string
	value         int
	event, settle bool
	sleep         time.Duration
}

// world is one table on one kernel, both under attack.
type world struct {
	k      *kernel
	tab    *table
	want   map[string]int // guarded by k.mu, as the fields below
	held   map[string]int
	set    bool
	broken string // the first rule that was violated
}

// check is called by the kernel before every write.
func (w *world) check(verb, key string) {
	broken := ""
	_, wanted := w.want[key]
	_, held := w.held[key]
	switch {
	case !w.set:
		broken = "before the first Set"
	case strings.HasPrefix(key, "foreign"):
		broken = "of a foreign object"
	case verb == "delete" && wanted:
		broken = "of a wanted object"
	case verb == "delete" && held:
		broken = "of a held object"
	case verb == "put" && !wanted:
		broken = "of an unwanted object"
	}
	if broken != "" && w.broken == "" {
		w.broken = fmt.Sprintf("%s %s: %s", verb, key, broken)
	}
}

func (w *world) do(s step) {
	switch s.kind {
	case 0:
		// The rules of check are about what was wanted when the write began: let the running pass end.
		synctest.Wait()
		w.k.tamper(func(map[string]int) { w.want, w.set = s.want, true })
		w.tab.Set(s.want)
	case 1:
		w.k.tamper(func(o map[string]int) {
			o[s.key] = s.value
			if s.value == 0 {
				delete(o, s.key)
			}
		})
		if s.event {
			w.tab.Dirty()
		}
	case 2:
		w.k.setFail(func(v, _ string) error {
			if v == s.verb || s.verb == "any" {
				return errInjected
			}
			return nil
		})
	case 3:
		w.k.tamper(func(map[string]int) { w.k.refuse[s.key] = !w.k.refuse[s.key] })
	case 4:
		synctest.Wait()
		w.k.tamper(func(map[string]int) { w.held = s.want })
		w.tab.HoldDeletes(func(k string, _ int) bool { _, ok := s.want[k]; return ok })
	case 5:
		w.tab.Dirty()
	case 6:
		time.Sleep(s.sleep)
	}
	if s.settle {
		synctest.Wait()
	}
}

// finish stops all failures and says what is wrong after a while; "" if nothing is.
func (w *world) finish(foreign map[string]int) string {
	synctest.Wait()
	w.k.setFail(nil)
	w.k.tamper(func(map[string]int) {
		clear(w.k.refuse)
		w.set, w.held = true, nil
	})
	w.tab.HoldDeletes(nil)
	w.tab.Set(w.want)
	time.Sleep(200 * time.Second) // two resyncs, many retries
	synctest.Wait()

	got := w.k.snapshot()
	for k, v := range foreign {
		if got[k] != v {
			return fmt.Sprintf("foreign %s is %d, want %d", k, got[k], v)
		}
		delete(got, k)
	}
	st := w.tab.Status()
	switch {
	case w.broken != "":
		return w.broken
	case !maps.Equal(got, w.want):
		return fmt.Sprintf("objects are %v, want %v; status %+v", got, w.want, st)
	case !st.InSync() || time.Since(st.LastSync) > 100*time.Second:
		return fmt.Sprintf("status %+v", st)
	}
	return ""
}

// TestConverges: whatever is wanted, tampered with, and fails in between, the objects end as wanted as soon as nothing
// fails any more; what is foreign is as it was; and no rule of check is violated on the way.
func TestConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		present := objects.Draw(rt, "present")
		script := steps.Draw(rt, "steps")
		wrong := ""
		synctest.Test(t, func(t *testing.T) {
			foreign := map[string]int{"foreign1": 1, "foreign2": 2}
			w := &world{k: newKernel(foreign)}
			w.k.tamper(func(o map[string]int) { maps.Copy(o, present) })
			w.k.onWrite = w.check
			w.tab = start(t, w.k, reconcile.Options[string]{})
			for _, s := range script {
				w.do(s)
			}
			wrong = w.finish(foreign)
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}
