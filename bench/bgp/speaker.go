package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/bgp"
)

// clusterID is that of the reflector, whichever program it is.
const clusterID = "1.1.1.1"

// speakerSpec describes one process with Maneki's speaker: the reflector of so
// many clients, or, with Server, a client of it.
type speakerSpec struct {
	Addr    netip.Addr
	Clients int
	Server  netip.Addr
	Want    int // routes; as a client, the milliseconds until it has them are printed
}

func runSpeaker(ctx context.Context, arg string) error {
	var s speakerSpec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("read specification: %w", err)
	}
	cfg := bgp.Config{
		RouterID: s.Addr, ASN: api.DefaultASNumber, Listen: []netip.AddrPort{netip.AddrPortFrom(s.Addr, 179)},
		Peers: map[netip.Addr]bgp.Peer{}, Announce: map[netip.Prefix]bgp.Announcement{},
	}
	peer := bgp.Peer{Name: "bench", Type: bgp.TypeNode, Local: s.Addr, ASN: api.DefaultASNumber, Cluster: true}
	if s.Server.IsValid() {
		peer.Addr = s.Server
		cfg.Peers[peer.Addr] = peer
	} else {
		cfg.ClusterID = netip.MustParseAddr(clusterID)
		peer.Client, peer.Passive = true, true
		for i := range s.Clients {
			peer.Addr = clientAddr(i)
			cfg.Peers[peer.Addr] = peer
		}
	}
	speaker := bgp.New(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), bgp.Options{})
	if err := speaker.Set(cfg); err != nil {
		return err
	}
	if s.Want > 0 {
		go tell(ctx, speaker, s.Want)
	}
	return speaker.Run(ctx)
}

// tell prints when the speaker has so many routes.
func tell(ctx context.Context, speaker *bgp.Speaker, want int) {
	began := time.Now()
	for {
		select {
		case <-speaker.Changed():
			if len(speaker.Best()) >= want {
				fmt.Printf("%.0f\n", float64(time.Since(began).Microseconds())/1000)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
