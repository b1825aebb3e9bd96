// Command mesh puts one real agent into a mesh with simulated neighbours and
// measures it: sessions, convergence, memory and CPU time. It runs inside a lab
// host without an agent, next to the one measured; see bench/run.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp/bgptest"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/datastore"
)

// first is the address of the first neighbour; the others follow it.
const first = "172.18.0.101"

func main() {
	n := flag.Int("n", 50, "neighbours")
	blocks := flag.Int("blocks", 1, "blocks that each announces")
	agent := flag.String("agent", "172.18.0.11", "address of the host measured")
	pid := flag.Int("pid", 0, "process of its agent")
	flag.Parse()
	if err := run(*n, *blocks, netip.MustParseAddr(*agent), *pid); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(n, blocks int, agent netip.Addr, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	clients, err := addresses(n, blocks)
	if err != nil {
		return err
	}
	before, err := usage(pid)
	if err != nil {
		return err
	}
	if err := register(ctx, agent, clients); err != nil {
		return err
	}
	start := time.Now()
	swarm := bgptest.Start(ctx, bgptest.Options{Server: netip.AddrPortFrom(agent, 179), Clients: clients})
	defer swarm.Close()
	if err := swarm.Wait(ctx, func() bool { return swarm.Established() == n }); err != nil {
		return fmt.Errorf("%d of %d sessions: %w", swarm.Established(), n, err)
	}
	sessions := time.Since(start)
	if err := converged(ctx, pid, n*blocks); err != nil {
		return err
	}
	routes := time.Since(start)
	time.Sleep(time.Second) // let what was started by it settle
	after, err := usage(pid)
	if err != nil {
		return err
	}
	fmt.Printf("| %d | %d | %.0f | %.0f | %.2f | %.1f | %.1f |\n", n, n*blocks, ms(sessions), ms(routes), (after.cpu - before.cpu).Seconds(), before.rss, after.rss)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// addresses gives this host the neighbours' addresses.
func addresses(n, blocks int) ([]bgptest.Client, error) {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("find eth0: %w", err)
	}
	a := netip.MustParseAddr(first)
	block := netip.MustParsePrefix("10.128.0.0/26")
	var out []bgptest.Client
	for range n {
		addr, err := netlink.ParseAddr(a.String() + "/24")
		if err != nil {
			return nil, err
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return nil, fmt.Errorf("add %s: %w", a, err)
		}
		c := bgptest.Client{Local: a, RouterID: a, ASN: api.DefaultASNumber}
		for range blocks {
			c.Routes = append(c.Routes, block)
			for range 64 {
				block = netip.PrefixFrom(block.Addr().Next(), 26)
			}
		}
		out = append(out, c)
		a = a.Next()
	}
	return out, nil
}

// register makes the neighbours nodes of the cluster.
func register(ctx context.Context, agent netip.Addr, clients []bgptest.Client) error {
	etcd := fmt.Sprintf("http://%s:2379", agent)
	store, err := config.Open(ctx, config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{etcd}}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer store.Close()
	for i, c := range clients {
		node := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGPSpec{IPv4Address: c.Local.String() + "/24"}}}
		node.Kind, node.APIVersion, node.Name = "Node", api.GroupVersion, fmt.Sprintf("sim%d", i)
		if err := datastore.For[api.Node](store).Apply(ctx, node); err != nil {
			return fmt.Errorf("register %s: %w", node.Name, err)
		}
	}
	return nil
}

// converged waits until the agent has the routes in its kernel, by its own
// word: the table lists the kernel after every change.
func converged(ctx context.Context, pid, routes int) error {
	c := agentapi.NewClient(fmt.Sprintf("/proc/%d/root%s", pid, agentapi.DefaultSocket))
	for {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		for _, t := range s.Tables {
			if t.Name == "routes" && t.Present >= routes {
				return nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// use is what a process has used.
type use struct {
	cpu time.Duration
	rss float64 // MiB
}

// ticks is USER_HZ, which every architecture of ours has at 100.
const ticks = 100

func usage(pid int) (use, error) {
	var u use
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, fmt.Errorf("process of the agent: %w", err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from the state on: utime and stime are fields 14 and 15 of proc(5)
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return u, fmt.Errorf("read %s/stat: %w", dir, err)
		}
		u.cpu += time.Duration(n) * time.Second / ticks
	}
	statm, err := os.ReadFile(filepath.Join(dir, "statm"))
	if err != nil {
		return u, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		return u, err
	}
	u.rss = float64(pages*os.Getpagesize()) / (1 << 20)
	return u, nil
}
