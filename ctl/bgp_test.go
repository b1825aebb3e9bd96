package ctl_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/exit"
)

// fakeAgent serves the documents of an agent on a socket.
func fakeAgent(t *testing.T) string {
	t.Helper()
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.Local)
	a := netip.MustParseAddr
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, body []byte, err error) {
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(body)
	}
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.Marshal(agentapi.Status{BGP: "running", ClusterID: a("1.1.1.1"), Peers: []agentapi.BGPPeer{
			{Address: a("10.0.0.2"), Name: "to-rr", Type: "node specific", State: "Established", Since: at, ASNumber: 64512, Received: 3, Accepted: 2, Advertised: 5, Client: true, Filters: []string{"x", "y"}},
			{Address: a("10.0.0.3"), Name: "tor", Type: "global", State: "Active", Since: at, ASNumber: 64999, LastError: "no answer from peer: it is down, or the passwords differ"},
		}})
		reply(w, body, err)
	})
	mux.HandleFunc("GET /v1/bgp/routes", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("peer") == "10.0.0.9" {
			http.Error(w, "10.0.0.9 is not a peer of this host", http.StatusNotFound)
			return
		}
		routes := []agentapi.BGPRoute{
			{Prefix: netip.MustParsePrefix("10.65.0.0/26"), LocalPref: 2147482623, Best: true, Communities: "64512:1"},
			{Prefix: netip.MustParsePrefix("10.65.1.0/26"), NextHop: a("10.0.0.2"), Peer: a("10.0.0.2"), LocalPref: 100, ASPath: "64999", Originator: a("9.9.9.9"), Stale: true, Refused: true},
		}
		body, err := json.Marshal(routes)
		reply(w, append(body, ' '), err)
	})
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return socket
}

func TestBGPCommands(t *testing.T) {
	socket := fakeAgent(t)
	for _, c := range []struct {
		args string
		want []string
		code int
	}{
		{"peers", []string{
			"Route reflector of cluster 1.1.1.1.",
			"| 10.0.0.2 | to-rr | node specific | 64512 | client | Established |",
			"x,y", "| 10.0.0.3 | tor   | global        | 64999 | -      | Active      |", "no answer from peer: it is down, or the passwords differ |",
		}, 0},
		{"routes", []string{
			"| 10.65.0.0/26 | self     | own      | 2147482623 | -       | 64512:1     | -          | best          |",
			"| 10.65.1.0/26 | 10.0.0.2 | 10.0.0.2 |        100 |   64999 | -           | 9.9.9.9    | stale,refused |",
		}, 0},
		{"routes --peer 10.0.0.2 --advertised", []string{"10.65.0.0/26"}, 0},
		{"routes -o json", []string{`"localPref": 2147482623`}, 0},
		{"peers -o json", []string{`"client": true`}, 0},
		{"routes --peer 10.0.0.9", []string{"10.0.0.9 is not a peer of this host"}, 1},
		{"routes --peer nobody", []string{"give the address of a peer"}, int(exit.Usage)},
		{"routes --received", []string{"name the peer with --peer"}, int(exit.Usage)},
		{"routes --peer 10.0.0.2 --received --advertised", []string{"exclude each other"}, int(exit.Usage)},
		{"peers -o yaml", []string{"unrecognized output format"}, int(exit.Usage)},
		{"peers --socket /nonexistent/agent.sock", []string{"node run"}, int(exit.NotRunning)},
		{"routes --socket /nonexistent/agent.sock", []string{"node run"}, int(exit.NotRunning)},
	} {
		args := append([]string{"bgp"}, strings.Fields(c.args)...)
		if !strings.Contains(c.args, "--socket") {
			args = append(args, "--socket", socket)
		}
		var out, errOut bytes.Buffer
		code := ctl.Execute(context.Background(), ctl.Options{Name: "maneki", Stdout: &out, Stderr: &errOut}, args)
		text := out.String() + errOut.String()
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s", c.args, code, c.code, text)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, text)
			}
		}
	}
}
