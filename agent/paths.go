package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/dataplane/tunnels"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/pathmtu"
)

// measurePaths makes the prober, unless it is not wanted.
func (a *Agent) measurePaths() {
	a.pipe.onPaths = func([]desired.Path) {}
	port, err := strconv.ParseUint(a.opts.PathPort, 10, 16)
	if err != nil {
		return // "-"; anything else was refused
	}
	a.prober = pathmtu.New(pathmtu.Options{
		Port: uint16(port), Log: a.opts.Log.With("part", "paths"), Changed: a.pathsChanged,
	})
	a.pipe.onPaths = a.prober.Set
}

// runProber measures once the first full state is in the kernel.
func (a *Agent) runProber(ctx context.Context) error {
	select {
	case <-a.pipe.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	return a.prober.Run(ctx)
}

// pathsChanged hands measurements on, and logs those that change something.
func (a *Agent) pathsChanged(facts map[desired.PathKey]desired.PathFact) {
	a.pipe.pathsMeasured(facts)
	now := findings(facts)
	for _, text := range now {
		if !slices.Contains(a.found, text) {
			a.opts.Log.Warn("a path is worse than its interfaces say", "finding", text)
		}
	}
	a.found = now
}

// findings are what was found out that is not as it should be, one line each.
func findings(facts map[desired.PathKey]desired.PathFact) []string {
	var out []string
	for _, key := range slices.SortedFunc(maps.Keys(facts), comparePaths) {
		f := facts[key]
		if f.NoChecksum {
			out = append(out, fmt.Sprintf("packets to %s arrive only without a checksum: checksum offload of %s is turned off", key, key.Device))
		}
		if f.MTU > 0 && f.MTU < f.Limit {
			out = append(out, fmt.Sprintf("%s takes %d of %d bytes", key, f.MTU, f.Limit))
		}
	}
	return slices.Compact(out) // both families of a host say the same
}

func comparePaths(a, b desired.PathKey) int {
	switch {
	case a.String() < b.String():
		return -1
	case a.String() > b.String():
		return 1
	case a.V6 != b.V6 && b.V6:
		return -1
	case a.V6 != b.V6:
		return 1
	}
	return 0
}

// pathReport is what `node status` says about paths; nil where none is measured.
func (a *Agent) pathReport(mtu int, devices desired.Tunnels) *agentapi.Paths {
	if a.prober == nil {
		return nil
	}
	facts := a.prober.Results()
	r := &agentapi.Paths{WorkloadMTU: mtu, Findings: findings(facts)}
	for _, key := range slices.SortedFunc(maps.Keys(facts), comparePaths) {
		f := facts[key]
		r.Paths = append(r.Paths, agentapi.Path{
			Node: key.Node, Device: key.Device, IPv6: key.V6, Answered: f.Answered, MTU: f.MTU, Limit: f.Limit, ChecksumBroken: f.NoChecksum,
		})
	}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if on, err := tunnels.TxChecksum(name); err == nil && !on {
			r.NoOffload = append(r.NoOffload, name)
		}
	}
	return r
}
