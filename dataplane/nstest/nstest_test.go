package nstest_test

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/manekinet/maneki/dataplane/nstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNamespaceIsSeparateAndRestored(t *testing.T) {
	ns := nstest.New(t)
	before := readlink(t)
	ns.Do(func() {
		if readlink(t) == before {
			t.Error("Do ran in the caller's namespace")
		}
		ns.Do(func() {})
	})
	if after := readlink(t); after != before {
		t.Errorf("namespace after Do is %s, want %s", after, before)
	}
	if got := ns.Command("ip", "-br", "link"); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "lo ") {
		// ifb0 and the like are created in the first namespace only.
		t.Errorf("links of a new namespace:\n%s", got)
	}
}

func TestFatalInsideDoRestores(t *testing.T) {
	ns := nstest.New(t)
	before := readlink(t)
	done := make(chan string)
	go func() {
		defer func() {
			_ = recover()
			done <- readlink(t)
		}()
		ns.Do(func() { panic("inside") })
	}()
	if after := <-done; after != before {
		t.Errorf("namespace after a panic in Do is %s, want %s", after, before)
	}
}

func TestVethCarriesPackets(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Veth(a, "eth0", b, "eth0")
	a.AddAddr("eth0", "10.0.0.1/24")
	b.AddAddr("eth0", "10.0.0.2/24")
	a.AddAddr("eth0", "fd00::1/64")
	b.AddAddr("eth0", "fd00::2/64")
	a.Command("ping", "-c1", "-W2", "10.0.0.2")
	a.Command("ping", "-c1", "-W2", "fd00::2")
	if _, err := a.TryCommand("ip", "route", "add", "nonsense"); err == nil {
		t.Error("a failing command gave no error")
	}
}

func TestPathNamesTheNamespace(t *testing.T) {
	ns := nstest.New(t)
	var inside string
	ns.Do(func() { inside = readlink(t) })
	got, err := os.Readlink(ns.Path())
	if err != nil || got != inside {
		t.Errorf("readlink %s = %q, %v; want %q", ns.Path(), got, err, inside)
	}
}

func readlink(t *testing.T) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}
