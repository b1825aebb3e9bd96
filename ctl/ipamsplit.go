package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
)

// maxParts bounds how many pools one pool is split into.
const maxParts = 4096

func (a *app) ipamSplitCommand() *cobra.Command {
	var cidr, name string
	c := &cobra.Command{
		Use:   "split NUMBER (--cidr CIDR | --name POOL)",
		Short: "Split an IP pool into smaller ones of equal size",
		Long: `Split an IP pool into smaller ones of equal size, a power of two of them. Addresses
in use stay as they are. The datastore must be locked.`,
		Example: "  ipam split --cidr=172.0.0.0/8 2",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			parts, err := strconv.Atoi(args[0])
			switch {
			case err != nil:
				return exit.New(exit.Usage, "", fmt.Errorf("error reading number to split IP pools into. %s is not a valid number", args[0]))
			case parts < 2 || parts > maxParts || bits.OnesCount(uint(parts)) != 1:
				return exit.New(exit.Usage, fmt.Sprintf("use 2, 4, 8, ... up to %d", maxParts), fmt.Errorf("number to split CIDR into is not a valid power of 2: %d", parts))
			case (cidr == "") == (name == ""):
				return exit.New(exit.Usage, "", errors.New("no name or CIDR provided. Provide a name or CIDR to denote the IP pool to split"))
			}
			return a.ipamSplit(c.Context(), parts, cidr, name)
		},
	}
	c.Flags().StringVar(&cidr, "cidr", "", "CIDR of the pool")
	c.Flags().StringVar(&name, "name", "", "name of the pool")
	return c
}

func (a *app) ipamSplit(ctx context.Context, parts int, cidr, name string) error {
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := a.requireLock(ctx, store, "in order to split the IP pools"); err != nil {
		return err
	}
	pool, err := findPool(ctx, store, cidr, name)
	if err != nil {
		return err
	}
	children, err := splitPool(pool, parts)
	if err != nil {
		return exit.New(exit.Input, "", fmt.Errorf("error splitting the CIDR %s into %d CIDRs: %w", pool.Spec.CIDR, parts, err))
	}
	if err := replacePool(ctx, store, pool, children); err != nil {
		return a.describe("update", identifierOf(pool), err)
	}
	fmt.Fprintf(a.Stdout, "IP Pool %s was successfully split into %d smaller pools.\n", pool.Name, parts)
	for _, c := range children {
		fmt.Fprintf(a.Stdout, "Created %s with CIDR %s.\n", c.Name, c.Spec.CIDR)
	}
	fmt.Fprintf(a.Stdout, "Addresses in use were kept; '%s datastore migrate unlock' lets the cluster go on.\n", a.Name)
	return nil
}

func findPool(ctx context.Context, store datastore.Store, cidr, name string) (*api.IPPool, error) {
	pools := datastore.For[api.IPPool](store)
	if name != "" {
		p, err := pools.Get(ctx, "", name)
		if isNotFound(err) {
			err = fmt.Errorf("resource does not exist: %s with error: <nil>", identifier("IPPool", "", name))
			return nil, exit.New(exit.NotFound, "", fmt.Errorf("unable to find IP pool with name %s: %w", name, err))
		}
		return p, err
	}
	want, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, exit.New(exit.Usage, "write one such as 10.65.0.0/16", fmt.Errorf("invalid CIDR '%s'", cidr))
	}
	all, _, _, err := pools.List(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("unable to list IP pools to find the pool specified by %s: %w", cidr, err)
	}
	for _, p := range all {
		if have, ok := p.Prefix(); ok && have == want.Masked() {
			return p, nil
		}
	}
	return nil, exit.New(exit.NotFound, "", fmt.Errorf("unable to find IP pool covering the specified CIDR %s", cidr))
}

// splitPool makes the smaller pools.
func splitPool(pool *api.IPPool, parts int) ([]*api.IPPool, error) {
	cidr, ok := pool.Prefix()
	if !ok {
		return nil, errors.New("the pool's CIDR cannot be read")
	}
	size := cidr.Bits() + bits.TrailingZeros(uint(parts))
	whole := *pool
	whole.Default()
	if size > whole.Spec.BlockSize {
		return nil, fmt.Errorf("the CIDR %s is not large enough to be split into %d parts: each must hold a block of size %d", cidr, parts, whole.Spec.BlockSize)
	}
	var children []*api.IPPool
	next := cidr.Addr()
	for i := range parts {
		c, err := copyPool(&whole)
		if err != nil {
			return nil, err
		}
		suffix := "-" + strconv.Itoa(i)
		name := "split-" + pool.Name
		c.ObjectMeta = api.ObjectMeta{
			Name: name[:min(len(name), 253-len(suffix))] + suffix, Labels: c.Labels, Annotations: c.Annotations,
		}
		c.Spec.CIDR = netip.PrefixFrom(next, size).String()
		c.Spec.Disabled = false
		if err := c.Validate(); err != nil {
			return nil, err
		}
		children = append(children, c)
		next = addBlock(next, size)
	}
	return children, nil
}

func copyPool(p *api.IPPool) (*api.IPPool, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	c := &api.IPPool{}
	return c, json.Unmarshal(text, c)
}

// addBlock is the address that follows the prefix of this length at addr.
func addBlock(addr netip.Addr, length int) netip.Addr {
	raw := addr.AsSlice()
	if length == 0 {
		return addr
	}
	i := (length - 1) / 8
	for step := uint(1) << (7 - (length-1)%8); i >= 0; i-- {
		sum := uint(raw[i]) + step
		raw[i] = byte(sum)
		if step = sum >> 8; step == 0 {
			break
		}
	}
	next, _ := netip.AddrFromSlice(raw) // as long as addr
	return next
}

// replacePool puts the smaller pools in the place of the old one: in one
// transaction if they fit, else behind the old one, which is disabled first and
// deleted last. Running it again after an interruption finishes the work.
func replacePool(ctx context.Context, store datastore.Store, pool *api.IPPool, children []*api.IPPool) error {
	pools := datastore.For[api.IPPool](store)
	rev := datastore.Revision(pool.ResourceVersion)
	if len(children) >= datastore.MaxOps {
		pool.Spec.Disabled = true
		if err := pools.Update(ctx, pool); err != nil {
			return err
		}
		rev = datastore.Revision(pool.ResourceVersion)
	}
	var ops []datastore.Op
	now := time.Now().UTC().Truncate(time.Second)
	for _, c := range children {
		have, err := pools.Get(ctx, "", c.Name)
		switch {
		case err == nil && have.Spec.CIDR == c.Spec.CIDR:
			continue // made by a split that was interrupted
		case err == nil:
			return &api.FieldErrors{List: []api.FieldError{{Field: "IPPool.Metadata.Name", Value: c.Name, Reason: "a pool of that name exists with CIDR " + have.Spec.CIDR}}}
		case !isNotFound(err):
			return err
		}
		c.UID, c.CreationTimestamp = uuid.NewString(), &now
		value, err := datastore.EncodeObject(c)
		if err != nil {
			return err
		}
		ops = append(ops, datastore.Op{Key: datastore.ObjectKey(c), Value: value, If: datastore.Absent()})
	}
	ops = append(ops, datastore.Op{Key: datastore.ObjectKey(pool), Delete: true, If: datastore.At(rev)})
	for chunk := range slices.Chunk(ops, datastore.MaxOps) {
		if _, err := datastore.Commit(ctx, store, chunk); err != nil {
			return err
		}
	}
	return nil
}
