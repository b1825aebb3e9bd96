package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// server is one HTTP listener of the agent. net/http recovers a panic of a
// handler, so that one bad request never ends the agent.
type server struct {
	http *http.Server
	l    net.Listener
}

// stopWithin bounds how long a stop waits for requests under way.
const stopWithin = time.Second

// listen opens the local socket, health and metrics. All are asked for before
// any serves: a taken port is an error at the start, not a silent absence.
func (a *Agent) listen() ([]*server, error) {
	var out []*server
	fail := func(err error) ([]*server, error) {
		for _, s := range out {
			s.l.Close()
		}
		return nil, err
	}
	sock, err := unixListener(filepath.Join(a.opts.RunDir, "agent.sock"))
	if err != nil {
		return fail(err)
	}
	out = append(out, newServer(sock, a.localHandler(), a.opts.Log))
	for _, s := range []struct {
		what, addr, flag string
		handler          http.Handler
	}{
		{"health", a.opts.HealthAddr, "--health-addr", a.healthHandler()},
		{"metrics", a.opts.MetricsAddr, "--metrics-addr", a.metricsHandler()},
	} {
		if s.addr == "-" {
			continue
		}
		l, err := net.Listen("tcp", s.addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fail(refuse(ErrBusy, "%s address %s is taken; choose another with %s, or \"-\" for none", s.what, s.addr, s.flag))
		}
		if err != nil {
			return fail(fmt.Errorf("listen for %s on %s: %w", s.what, s.addr, err))
		}
		out = append(out, newServer(l, s.handler, a.opts.Log))
	}
	return out, nil
}

func newServer(l net.Listener, h http.Handler, log *slog.Logger) *server {
	return &server{l: l, http: &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
}

// serve answers until ctx is done.
func (s *server) serve(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx } // a stop ends the streams
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		if s.http.Shutdown(grace) != nil {
			s.http.Close()
		}
	})
	defer stop()
	if err := s.http.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", s.l.Addr(), err)
	}
	return ctx.Err()
}

// unixListener makes a socket that only root can use. The agent's lock has
// been taken, so that a socket file found here is a dead one's.
func unixListener(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Connecting needs write permission, which the usual umask gives to root alone from the first moment.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("restrict %s: %w", path, err)
	}
	return l, nil
}

func (a *Agent) localHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.status()); err != nil {
			a.opts.Log.Debug("status was not read to its end", "err", err)
		}
	})
	mux.HandleFunc("GET /v1/bgp/routes", a.serveRoutes)
	mux.HandleFunc("GET /v1/drops", a.serveDrops)
	mux.HandleFunc("GET /v1/flows", a.serveFlows)
	mux.HandleFunc("GET /v1/policy/hits", a.serveHits)
	mux.HandleFunc("GET /v1/policy", a.servePolicy)
	return mux
}

// healthHandler serves /liveness (the process computes) and /readiness (the
// network of this host is as wanted), 200 or 503 with the reasons.
func (a *Agent) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /liveness", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "live")
	})
	mux.HandleFunc("GET /readiness", func(w http.ResponseWriter, _ *http.Request) {
		if s := a.status(); !s.Ready {
			http.Error(w, strings.Join(s.NotReady, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

func (a *Agent) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{agent: a})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	return mux
}
