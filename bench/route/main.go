// Command route times how long a new block on one host takes to become a kernel
// route on all others: from the moment the datastore has accepted the block's
// confirmed affinity to the last netlink notification in the others' namespaces.
// That spans watch, calculation, BGP on both hosts and the route's netlink
// request. With -bird the host has BIRD instead, and the time runs from the command
// that enables the block's static route: BGP and netlink alone.
//
// It runs inside the lab host that has the blocks; see bench/route/run.
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
	socket := flag.String("bird", "", "control socket of a BIRD, whose protocol \"blocks\" is the static route 10.200.0.0/26")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	origin, err := originOf(ctx, *socket, *node, *endpoint)
	if err == nil {
		err = run(ctx, origin, strings.Split(*peers, ","), *n)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// origin is what makes a block appear and go on this host. Both return when that
// is accepted, with the moment from which the time counts.
type origin interface {
	put(ctx context.Context, block netip.Prefix) (time.Time, error)
	drop(ctx context.Context, block netip.Prefix) (time.Time, error)
	next(block netip.Prefix) netip.Prefix
	name() string
}

func originOf(ctx context.Context, bird, node, endpoint string) (origin, error) {
	if bird != "" {
		return dialBIRD(bird)
	}
	store, err := config.Open(ctx, config.Config{Type: "etcdv3", EtcdEndpoints: []string{endpoint}}, slog.New(slog.DiscardHandler))
	return maneki{store: store, node: node}, err
}

// maneki is a datastore that an agent on this host follows.
type maneki struct {
	store datastore.Store
	node  string
}

func (m maneki) name() string { return "maneki" }

func (m maneki) key(block netip.Prefix) datastore.Key {
	return datastore.Key{Kind: datastore.KindBlockAffinity, Namespace: "host:" + m.node, Name: block.String()}
}

func (m maneki) put(ctx context.Context, block netip.Prefix) (time.Time, error) {
	_, err := m.store.Put(ctx, m.key(block), []byte(`{"state":"`+string(api.AffinityConfirmed)+`","deleted":false}`), datastore.Always())
	return time.Now(), err
}

func (m maneki) drop(ctx context.Context, block netip.Prefix) (time.Time, error) {
	err := m.store.Delete(ctx, m.key(block), datastore.Always())
	return time.Now(), err
}

// next is the block behind this one.
func (m maneki) next(block netip.Prefix) netip.Prefix {
	a := block.Addr()
	for range 64 {
		a = a.Next()
	}
	return netip.PrefixFrom(a, 26)
}

func run(ctx context.Context, from origin, peers []string, n int) error {
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
		began, err := from.put(ctx, block)
		if err == nil {
			err = await(ctx, hosts, block, true)
		}
		if err != nil {
			return err
		}
		added = append(added, time.Since(began))
		if began, err = from.drop(ctx, block); err == nil {
			err = await(ctx, hosts, block, false)
		}
		if err != nil {
			return err
		}
		removed = append(removed, time.Since(began))
		block = from.next(block)
	}
	report(fmt.Sprintf("%s | %d | new block to kernel route", from.name(), len(peers)), added)
	report(fmt.Sprintf("%s | %d | block gone to kernel route gone", from.name(), len(peers)), removed)
	return nil
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
