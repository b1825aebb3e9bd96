package routes_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/dataplane/routes"
	"github.com/manekinet/maneki/desired"
)

// TestUnderlay lists what others wrote, in the main table, and not what is ours or a workload's.
func TestUnderlay(t *testing.T) {
	ns, a := host(t, routes.Options{})
	for _, r := range []string{
		"10.20.0.0/16 via 10.0.0.2 metric 5",
		"10.20.0.0/16 via 10.0.0.3 metric 4",
		"default via 10.0.0.254",
		"10.21.0.1 dev eth0",
		"10.22.0.0/16 nexthop via 10.0.0.4 nexthop via 10.0.0.5 weight 7",
		"10.23.0.0/16 via inet6 fe80::7 dev eth0",
		"blackhole 10.24.0.0/16",
		"10.25.0.0/16 via 10.0.0.6 proto 81",
		"10.26.0.1 dev caliA",
		"10.27.0.0/16 via 10.0.0.6 table 100",
	} {
		ns.Command("ip", append([]string{"route", "add"}, strings.Fields(r)...)...)
	}
	ns.Command("ip", "-6", "route", "add", "fd20::/32", "via", "fd00::9")
	got, err := a.Underlay(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, u := range got {
		lines = append(lines, fmt.Sprintf("%s metric %d %s", u.Dst, u.Priority, u.NextHops))
	}
	want := []string{
		"0.0.0.0/0 metric 0 nexthop via 10.0.0.254 dev eth0 weight 1",
		"10.0.0.0/24 metric 0 nexthop dev eth0 weight 1",
		"10.20.0.0/16 metric 4 nexthop via 10.0.0.3 dev eth0 weight 1",
		"10.20.0.0/16 metric 5 nexthop via 10.0.0.2 dev eth0 weight 1",
		"10.21.0.1/32 metric 0 nexthop dev eth0 weight 1",
		"10.22.0.0/16 metric 0 nexthop via 10.0.0.4 dev eth0 weight 1 nexthop via 10.0.0.5 dev eth0 weight 1",
		"10.23.0.0/16 metric 0 nexthop via fe80::7 dev eth0 weight 1",
		"fd00::/64 metric 256 nexthop dev eth0 weight 1",
		"fd20::/32 metric 1024 nexthop via fd00::9 dev eth0 weight 1",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestUnderlayEvents(t *testing.T) {
	ns, a := host(t, routes.Options{})
	r := watch(t, a, nil)
	dump(t, a)
	r.settled()
	event := routes.Event{Kind: routes.Underlay}
	for _, c := range []struct {
		cmd  string
		want bool
	}{
		{"add 10.20.0.0/16 via 10.0.0.2", true},
		{"del 10.20.0.0/16", true},
		{"add 10.26.0.1 dev caliA", false},
		{"add 10.20.0.0/16 via 10.0.0.2 proto 81", false},
		{"add 10.20.0.0/16 via 10.0.0.2 table 100", false},
	} {
		ns.Command("ip", append([]string{"route"}, strings.Fields(c.cmd)...)...)
		if got := r.settled(); (got[event] > 0) != c.want {
			t.Errorf("%s: events %v", c.cmd, got)
		}
	}
	put(t, a, "10.8.0.0/24", desired.Route{Gateway: addr("10.0.0.2"), Dev: "eth0", Proto: 81})
	if got := r.settled(); len(got) > 0 {
		t.Errorf("own writes: %v", got)
	}
}
