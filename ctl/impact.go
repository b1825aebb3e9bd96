package ctl

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/resource"
)

// impact says, before pools are changed or deleted, which workloads that run
// notice it: one line for each such pool. Where the datastore does not answer
// there is none; the write that follows will say so.
func impact(ctx context.Context, client *resource.Client, items []item, verb string) []string {
	var notes []string
	for _, i := range items {
		next, ok := i.object.(*api.IPPool)
		if !ok {
			continue
		}
		stored, err := client.Get(ctx, i.kind, "", next.Name)
		if err != nil {
			continue // a new one, or the write fails as well
		}
		if now, ok := stored.(*api.IPPool); ok {
			notes = append(notes, poolImpact(ctx, client, now, next, verb)...)
		}
	}
	return notes
}

// poolImpact is impact for one pool; next does not matter when it is deleted.
func poolImpact(ctx context.Context, client *resource.Client, now, next *api.IPPool, verb string) []string {
	changes := ""
	if verb != "delete" {
		if changes = noticed(now, next); changes == "" {
			return nil
		}
	}
	n, hosts, err := addressesIn(ctx, client, now.Spec.CIDR)
	if err != nil || n == 0 {
		return nil
	}
	who := fmt.Sprintf("IPPool(%s): %s of workloads on %s in %s", now.Name, plural(n, "address", "addresses"), plural(hosts, "host", "hosts"), now.Spec.CIDR)
	if verb == "delete" {
		return []string{who + ": they keep their addresses, without the pool's encapsulation and NAT; no new workload gets one"}
	}
	return []string{who + " notice the change of " + changes}
}

// noticed names the fields that change how packets of workloads travel that are
// there already, with both values.
func noticed(now, next *api.IPPool) string {
	def := func(m api.EncapMode) string {
		if m == "" {
			m = api.EncapNever
		}
		return string(m)
	}
	var out []string
	for _, f := range []struct{ name, old, new string }{
		{"ipipMode", def(now.Spec.IPIPMode), def(next.Spec.IPIPMode)},
		{"vxlanMode", def(now.Spec.VXLANMode), def(next.Spec.VXLANMode)},
		{"natOutgoing", fmt.Sprint(now.Spec.NATOutgoing), fmt.Sprint(next.Spec.NATOutgoing)},
		{"disableBGPExport", fmt.Sprint(now.Spec.DisableBGPExport), fmt.Sprint(next.Spec.DisableBGPExport)},
	} {
		if f.old != f.new {
			out = append(out, fmt.Sprintf("%s from %s to %s", f.name, f.old, f.new))
		}
	}
	return strings.Join(out, ", ")
}

// addressesIn counts the addresses of workloads in a pool, and their hosts.
func addressesIn(ctx context.Context, client *resource.Client, cidr string) (addresses, hosts int, err error) {
	pool, err := netip.ParsePrefix(cidr)
	if err != nil {
		return 0, 0, err
	}
	kind, err := api.LookupKind("WorkloadEndpoint")
	if err != nil {
		return 0, 0, err
	}
	objects, _, err := client.List(ctx, kind, "")
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return 0, 0, err
	}
	on := map[string]bool{}
	for _, o := range objects {
		w, ok := o.(*api.WorkloadEndpoint)
		if !ok {
			continue
		}
		for _, text := range w.Spec.IPNetworks {
			if net, err := netip.ParsePrefix(text); err == nil && pool.Contains(net.Addr()) {
				addresses++
				on[w.Spec.Node] = true
			}
		}
	}
	return addresses, len(on), nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
