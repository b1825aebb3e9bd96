package ctl

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

// checkPools refuses a file of several resources when one of its pools will be
// refused, so that the others are not written first. The rules themselves are
// package resource's, which applies them again at each write.
func (a *app) checkPools(ctx context.Context, client *resource.Client, verb string, items []item) error {
	if len(items) < 2 || !hasPool(items) {
		return nil
	}
	kind, err := api.LookupKind("IPPool")
	if err != nil {
		return err
	}
	stored, _, err := client.List(ctx, kind, "")
	if err != nil {
		return exit.New(exit.Code(ExitCode(err)), "nothing was changed", fmt.Errorf("read IP pools: %w", err))
	}
	var pools []*api.IPPool
	for _, o := range stored {
		if p, ok := o.(*api.IPPool); ok {
			pools = append(pools, p)
		}
	}
	var errs []error
	for _, i := range items {
		p, ok := i.object.(*api.IPPool)
		if !ok {
			continue
		}
		if err := clash(pools, p, verb); err != nil {
			errs = append(errs, locate(err, i, len(items)))
		}
		pools = append(pools, p)
	}
	if len(errs) > 0 {
		return refuse(verb, items, errs)
	}
	return nil
}

func hasPool(items []item) bool {
	for _, i := range items {
		if _, ok := i.object.(*api.IPPool); ok {
			return true
		}
	}
	return false
}

// clash reports the first pool of another name that overlaps p, or an edit of
// p's own that must not be made (spec/calico.md §3).
func clash(pools []*api.IPPool, p *api.IPPool, verb string) error {
	cidr, err := netip.ParsePrefix(p.Spec.CIDR)
	if err != nil {
		return nil // Validate has reported it
	}
	var wrong api.FieldErrors
	for _, other := range pools {
		if other.Name == p.Name {
			if verb != "create" && other.Spec.CIDR != p.Spec.CIDR {
				wrong.Add("IPPool.Spec.CIDR", p.Spec.CIDR, "IPPool CIDR cannot be modified, it is "+other.Spec.CIDR)
			}
			if verb != "create" && other.Spec.BlockSize != p.Spec.BlockSize {
				wrong.Add("IPPool.Spec.BlockSize", fmt.Sprint(p.Spec.BlockSize), fmt.Sprintf("IPPool BlockSize cannot be modified, it is %d", other.Spec.BlockSize))
			}
			return wrong.Err()
		}
		otherCIDR, err := netip.ParsePrefix(other.Spec.CIDR)
		if err == nil && otherCIDR.Overlaps(cidr) {
			wrong.Add("IPPool.Spec.CIDR", p.Spec.CIDR, fmt.Sprintf("IPPool(%s) CIDR overlaps with IPPool(%s) CIDR %s", p.Name, other.Name, other.Spec.CIDR))
			return wrong.Err()
		}
	}
	return nil
}
