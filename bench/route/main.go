// Command route times how long a new block on one host takes to become a kernel
// route on all others: from the moment the datastore has accepted the block's
// confirmed affinity to the last netlink notification in the others' namespaces.
// That spans watch, calculation, BGP on both hosts and the route's netlink
// request.
//
// It runs inside the lab host that keeps the datastore; see bench/run.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
)

func main() {
	peers := flag.String("peer-netns", "", "paths of the other hosts' network namespaces, with commas")
	node := flag.String("node", "h1", "the host that gets the blocks")
	endpoint := flag.String("etcd", "http://127.0.0.1:2379", "datastore")
	n := flag.Int("n", 100, "blocks")
	flag.Parse()
	if err := run(strings.Split(*peers, ","), *node, *endpoint, *n); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(peers []string, node, endpoint string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	store, err := config.Open(ctx, config.Config{Type: "etcdv3", EtcdEndpoints: []string{endpoint}}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer store.Close()
	var hosts []chan netlink.RouteUpdate
	done := make(chan struct{})
	defer close(done)
	for _, peer := range peers {
		updates, err := subscribe(peer, done)
		if err != nil {
			return err
		}
		hosts = append(hosts, updates)
	}
	var added, removed []time.Duration
	block := netip.MustParsePrefix("10.200.0.0/26")
	for range n {
		key := datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:" + node, Name: block.String()}
		if _, err := store.Put(ctx, key, []byte(`{"state":"`+string(api.AffinityConfirmed)+`","deleted":false}`), datastore.Always()); err != nil {
			return err
		}
		committed := time.Now()
		if err := await(ctx, hosts, block, true); err != nil {
			return err
		}
		added = append(added, time.Since(committed))
		if err := store.Delete(ctx, key, datastore.Always()); err != nil {
			return err
		}
		committed = time.Now()
		if err := await(ctx, hosts, block, false); err != nil {
			return err
		}
		removed = append(removed, time.Since(committed))
		block = netip.PrefixFrom(next(block), 26)
	}
	report(fmt.Sprintf("new block to kernel route, %d other hosts", len(peers)), added)
	report(fmt.Sprintf("block gone to kernel route gone, %d other hosts", len(peers)), removed)
	return nil
}

func next(p netip.Prefix) netip.Addr {
	a := p.Addr()
	for range 64 {
		a = a.Next()
	}
	return a
}

// subscribe listens to the route changes of another host until done is closed.
func subscribe(peer string, done <-chan struct{}) (chan netlink.RouteUpdate, error) {
	ns, err := netns.GetFromPath(peer)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", peer, err)
	}
	defer ns.Close()
	updates := make(chan netlink.RouteUpdate, 1024)
	if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
		return nil, fmt.Errorf("watch routes in %s: %w", peer, err)
	}
	return updates, nil
}

// await returns when the block's route has come or gone on every host.
func await(ctx context.Context, hosts []chan netlink.RouteUpdate, block netip.Prefix, there bool) error {
	want := uint16(unix.RTM_NEWROUTE)
	if !there {
		want = unix.RTM_DELROUTE
	}
	for _, updates := range hosts {
		for found := false; !found; {
			select {
			case u := <-updates:
				found = u.Type == want && u.Dst != nil && u.Dst.String() == block.String()
			case <-ctx.Done():
				return fmt.Errorf("route %s: %w", block, ctx.Err())
			}
		}
	}
	return nil
}

func report(what string, d []time.Duration) {
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Printf("| %s | %d | %.1f | %.1f | %.1f |\n", what, len(d), ms(d[len(d)/2]), ms(d[len(d)*99/100]), ms(d[len(d)-1]))
}
