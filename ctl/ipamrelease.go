package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/ipam"
)

type ipamReleaseFlags struct {
	ip      string
	reports []string
	force   bool
}

func (a *app) ipamReleaseCommand() *cobra.Command {
	var f ipamReleaseFlags
	c := &cobra.Command{
		Use:   "release (--ip ADDRESS | --from-report FILE...)",
		Short: "Release an address, or those that a report calls leaked",
		Long: `Release an address, or those that a report of 'ipam check -o' calls leaked.

An endpoint that uses an address is not told: release only what belongs to nobody.
With several reports, made some time apart, only what is leaked in all of them is
released; one of them must have been made since the datastore was locked.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var addr netip.Addr
			var err error
			switch {
			case (f.ip == "") == (len(f.reports) == 0):
				return exit.New(exit.Usage, "give --ip ADDRESS, or --from-report FILE", errors.New("say what to release"))
			case f.ip != "":
				if addr, err = parseAddr(f.ip); err != nil {
					return err
				}
			}
			store, log, err := a.openStore(c.Context())
			if err != nil {
				return err
			}
			defer store.Close()
			client := ipam.New(store, ipam.Options{Log: log, Now: a.Now})
			if addr.IsValid() {
				return a.releaseAddress(c.Context(), client, addr)
			}
			return a.releaseReports(c.Context(), store, client, f)
		},
	}
	c.Flags().StringVar(&f.ip, "ip", "", "the address to release")
	c.Flags().StringArrayVar(&f.reports, "from-report", nil, "release what this report calls leaked; may be repeated")
	c.Flags().BoolVar(&f.force, "force", false, "though the datastore is not locked or the report is of another version")
	return c
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, exit.New(exit.Usage, "write one such as 10.65.0.1 or fd80::1", fmt.Errorf("invalid IP address '%s'", text))
	}
	return addr.Unmap(), nil
}

func (a *app) releaseAddress(ctx context.Context, client *ipam.Client, addr netip.Addr) error {
	missing, err := client.Release(ctx, addr)
	if err != nil {
		return a.describe("release", "IPAM", err)
	}
	if len(missing) > 0 {
		return exit.New(exit.NotFound, "", fmt.Errorf("IP address %s is not assigned", addr))
	}
	fmt.Fprintf(a.Stdout, "Successfully released IP address %s\n", addr)
	return nil
}

func (a *app) releaseReports(ctx context.Context, store datastore.Store, client *ipam.Client, f ipamReleaseFlags) error {
	info, err := datastore.For[api.ClusterInformation](store).Get(ctx, "", "default")
	if err != nil {
		return a.noCluster(err)
	}
	reports, err := a.readReports(info, f)
	if err != nil {
		return err
	}
	if !isLocked(info) {
		if !f.force {
			return exit.New(exit.Conflict, "", errors.New("data store is not locked. Either lock the data store, or re-run with --force"))
		}
		fmt.Fprintln(a.Stdout, "WARNING: Data store is not locked. Ignoring due to --force option")
	}
	addrs, handles, err := leakedInAll(reports)
	if err != nil {
		return exit.New(exit.Input, "", err)
	}
	if len(addrs) == 0 {
		fmt.Fprintln(a.Stdout, "Report didn't contain any leaked IPs to clean up.")
	} else if err := a.releaseLeaked(ctx, client, addrs); err != nil {
		return a.describe("release", "IPAM", err)
	}
	if len(handles) == 0 {
		fmt.Fprintln(a.Stdout, "Report didn't contain any handles to clean up.")
	} else if err := a.releaseHandles(ctx, store, handles); err != nil {
		return a.describe("release", "IPAM", err)
	}
	if isLocked(info) {
		fmt.Fprintln(a.Stdout, "You may now unlock the data store.")
	}
	return nil
}

// readReports reads the reports and refuses those that are not of this cluster.
func (a *app) readReports(info *api.ClusterInformation, f ipamReleaseFlags) ([]ipamReport, error) {
	var reports []ipamReport
	current := false
	for _, name := range f.reports {
		text, err := readFile(name)
		if err != nil {
			return nil, exit.New(exit.Input, "", err)
		}
		var r ipamReport
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, exit.New(exit.Input, "make one with 'ipam check -o FILE'", fmt.Errorf("read report %s: %w", name, err))
		}
		if r.ClusterGUID != info.Spec.ClusterGUID {
			return nil, exit.New(exit.Input, "", fmt.Errorf("cluster does not match the provided report (%s): mismatched cluster GUID. Refusing to release", name))
		}
		if r.Version != a.Version {
			if !f.force {
				return nil, exit.New(exit.Input, "--force ignores that", fmt.Errorf("the provided report (%s) was produced using a different version (%s) of %s. Refusing to release", name, r.Version, a.Name))
			}
			fmt.Fprintf(a.Stdout, "WARNING: Report was produced using a different version of %s. Ignoring due to --force option\n", a.Name)
		}
		current = current || r.ClusterRevision == info.ResourceVersion
		reports = append(reports, r)
	}
	if !current {
		return nil, exit.New(exit.Conflict, "", errors.New("the provided reports are all stale - at least one should be up-to-date. Please generate a new report while the data store is locked and try again"))
	}
	return reports, nil
}

// leakedInAll finds the allocations and handles that every report calls leaked
// and that have not changed between the reports.
func leakedInAll(reports []ipamReport) (map[netip.Addr]ipam.ReleaseOptions, map[string]string, error) {
	var addrs map[netip.Addr]ipam.ReleaseOptions
	var handles map[string]string // ID to revision
	for _, r := range reports {
		theirs := map[netip.Addr]ipam.ReleaseOptions{}
		for _, list := range r.Allocations {
			for _, x := range list {
				if x == nil || x.InUse {
					continue
				}
				addr, err := netip.ParseAddr(x.IP)
				if err != nil {
					return nil, nil, fmt.Errorf("the report holds the address '%s': %w", x.IP, err)
				}
				o := ipam.ReleaseOptions{Addr: addr, Handle: x.Handle}
				if x.Sequence != nil {
					o.Sequence = *x.Sequence
				}
				if addrs == nil || addrs[addr] == o {
					theirs[addr] = o
				}
			}
		}
		addrs = theirs
		ids := map[string]string{}
		for _, h := range r.LeakedHandles {
			if handles == nil || handles[h.ID] == h.Revision {
				ids[h.ID] = h.Revision
			}
		}
		handles = ids
	}
	return addrs, handles, nil
}

// releaseChunk is how many addresses are released in one transaction.
const releaseChunk = 50

// releaseLeaked releases allocations that are still what the reports say.
func (a *app) releaseLeaked(ctx context.Context, client *ipam.Client, addrs map[netip.Addr]ipam.ReleaseOptions) error {
	fmt.Fprintf(a.Stdout, "Releasing %d old IPs...\n", len(addrs))
	bar := a.progress("addresses", len(addrs))
	defer bar.end()
	released, gone, stale := 0, 0, 0
	sorted := slices.SortedFunc(maps.Keys(addrs), netip.Addr.Compare)
	for chunk := range slices.Chunk(sorted, releaseChunk) {
		var opts []ipam.ReleaseOptions
		for _, addr := range chunk {
			opts = append(opts, addrs[addr])
		}
		missing, err := client.ReleaseExactly(ctx, opts...)
		if errors.Is(err, ipam.ErrStale) { // one of them: find out which
			missing = nil
			for _, o := range opts {
				one, err := client.ReleaseExactly(ctx, o)
				switch {
				case errors.Is(err, ipam.ErrStale):
					stale++
				case err != nil:
					return err
				}
				missing = append(missing, one...)
			}
		} else if err != nil {
			return err
		}
		gone += len(missing)
		released += len(opts)
		bar.add(len(opts))
	}
	fmt.Fprintf(a.Stdout, "Released %d IPs successfully\n", released-gone-stale)
	if gone > 0 {
		fmt.Fprintf(a.Stdout, "%d addresses marked as leaked in the report had already been cleaned up.\n", gone)
	}
	if stale > 0 {
		fmt.Fprintf(a.Stdout, "%d addresses marked as leaked in the report belong to somebody else by now and were kept.\n", stale)
	}
	return nil
}

// releaseHandles deletes handles that have not changed since the reports.
func (a *app) releaseHandles(ctx context.Context, store datastore.Store, handles map[string]string) error {
	fmt.Fprintf(a.Stdout, "Deleting %d handles...\n", len(handles))
	bar := a.progress("handles", len(handles))
	defer bar.end()
	released, skipped := 0, 0
	for _, id := range slices.Sorted(maps.Keys(handles)) {
		err := store.Delete(ctx, datastore.Key{Kind: datastore.KindIPAMHandle, Name: id}, datastore.At(datastore.Revision(handles[id])))
		switch {
		case err == nil:
			released++
		case errors.Is(err, datastore.ErrNotFound), errors.Is(err, datastore.ErrConflict):
			skipped++
		default:
			return err
		}
		bar.add(1)
	}
	fmt.Fprintf(a.Stdout, "Released %d handles; %d skipped; 0 errors.\n", released, skipped)
	return nil
}
