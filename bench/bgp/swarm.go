package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp/bgptest"
)

// swarmSpec describes the simulated clients of one case.
type swarmSpec struct {
	Server  netip.AddrPort
	Clients int
	Routes  int // of each
	// Patience is the longest wait for one picture.
	Patience time.Duration
}

func clientAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 200, byte(i / 200), byte(i%200 + 1)})
}

// block is the prefix with a number, and number the number of a prefix, -1 for
// one that is not a client's.
func block(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(n >> 10), byte(n >> 2), byte(n << 6)}), 26)
}

func number(p netip.Prefix) int {
	a := p.Addr().As4()
	if a[0] != 100 || p.Bits() != 26 {
		return -1
	}
	return int(a[1])<<10 | int(a[2])<<2 | int(a[3])>>6
}

func blocks(client, each int) []netip.Prefix {
	var out []netip.Prefix
	for r := range each {
		out = append(out, block(client*each+r))
	}
	return out
}

// quiet is how long nothing may change before a picture counts as final: a
// daemon may gather updates for seconds before it sends them.
const quiet = time.Second

// runSwarm is the process of the clients. It obeys one word a line: "cold",
// "flap", "again" (after the daemon has been started again), and answers with
// milliseconds, or with what is missing.
func runSwarm(ctx context.Context, arg string) error {
	var s swarmSpec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("read specification: %w", err)
	}
	opt := bgptest.Options{Server: s.Server, Count: &bgptest.Count{Each: s.Routes, Number: number}}
	for i := range s.Clients {
		opt.Clients = append(opt.Clients, bgptest.Client{Local: clientAddr(i), RouterID: clientAddr(i), ASN: api.DefaultASNumber, Routes: blocks(i, s.Routes)})
	}
	var sw *bgptest.Swarm
	flapped := 0
	words := bufio.NewScanner(os.Stdin)
	for words.Scan() {
		began := time.Now()
		switch words.Text() {
		case "cold":
			sw = bgptest.Start(ctx, opt)
			defer sw.Close()
		case "flap":
			sw.Flap(flapped % s.Clients)
			flapped += s.Clients/2 + 1
		}
		if err := full(ctx, sw, s, began); err != nil {
			least, client := sw.Held()
			fmt.Printf("%d of %d up, client %d holds %d of %d: %v\n", sw.Established(), s.Clients, client, least, (s.Clients-1)*s.Routes, sw.Err(client))
			continue
		}
		fmt.Printf("%.1f\n", float64(sw.LastChange().Sub(began).Microseconds())/1000)
	}
	return words.Err()
}

// full waits until all clients hold everything and nothing changes any more.
// What was heard before began is not counted as the answer.
func full(ctx context.Context, sw *bgptest.Swarm, s swarmSpec, began time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	for {
		if err := sw.Wait(ctx, func() bool { return sw.Full() == s.Clients && sw.Established() == s.Clients }); err != nil {
			return err
		}
		last := sw.LastChange()
		if last.After(began) && time.Since(last) >= quiet {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
