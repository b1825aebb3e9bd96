package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab/labcmd"
)

// TestMain makes the test binary its own maneki: the lab runs it as pause
// process, tool, agent and CNI installer. The lab's parts are the real ones;
// the agent is a small server with the same two doors (readiness, etcd port),
// and the CNI plugin is Debian's ptp.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"lab", "node", "cni", "die", "dierun"}, os.Args[1]) {
		os.Exit(standIn(os.Args[1:]))
	}
	flag.Parse()
	// The race detector makes every process sleep a second before it ends.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces: run them as root")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func standIn(args []string) int {
	root := &cobra.Command{Use: "maneki", SilenceErrors: true, SilenceUsage: true}
	node := &cobra.Command{Use: "node"}
	node.AddCommand(&cobra.Command{Use: "run", DisableFlagParsing: true, RunE: runNode})
	cni := &cobra.Command{Use: "cni"}
	install := &cobra.Command{Use: "install", RunE: installCNI}
	install.Flags().Bool("ipv6", false, "")
	cni.AddCommand(install)
	root.AddCommand(labcmd.Command(), node, cni, dieCommand(), dieRunCommand())
	root.SetArgs(args)
	err := root.Execute()
	if err != nil {
		fmt.Fprintln(os.Stderr, "maneki:", err)
	}
	return int(exit.CodeOf(err))
}

// runNode is an agent with nothing behind its doors.
func runNode(_ *cobra.Command, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if os.Getenv("FAIL") != "" {
		return errors.New("the agent was told to fail")
	}
	fmt.Println("args", args, "etcd", os.Getenv("ETCD_ENDPOINTS"), "as", os.Getenv("AS"))
	addrs := []string{"127.0.0.1:9099"}
	for _, a := range args {
		if listen, ok := strings.CutPrefix(a, "--etcd-listen="); ok {
			u, err := url.Parse(listen)
			if err != nil {
				return err
			}
			addrs = append(addrs, u.Host)
		}
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"health":"true"}`)
	})}
	api, err := serveStatus()
	if err != nil {
		return err
	}
	defer api.Close()
	failed := make(chan error, len(addrs))
	for _, a := range addrs {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() { failed <- srv.Serve(ln) }()
	}
	select {
	case <-ctx.Done():
		return srv.Close()
	case err := <-failed:
		return err
	}
}

// serveStatus answers on the agent's socket as an agent with two peers does.
func serveStatus() (*http.Server, error) {
	ln, err := net.Listen("unix", agentapi.DefaultSocket)
	if err != nil {
		return nil, err
	}
	status, err := json.Marshal(agentapi.Status{BGP: "running", Peers: []agentapi.BGPPeer{{State: "Established"}, {State: "Active"}}})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/status", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(status) })
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(ln) }() // ends with the process
	return srv, nil
}

// installCNI puts ptp in place under the name of our plugin.
func installCNI(*cobra.Command, []string) error {
	for name, from := range map[string]string{"maneki-cni": "ptp", "host-local": "host-local"} {
		bin, err := os.ReadFile("/usr/lib/cni/" + from)
		if err != nil {
			return fmt.Errorf("install the package containernetworking-plugins: %w", err)
		}
		if err := os.WriteFile("/opt/cni/bin/"+name, bin, 0o755); err != nil {
			return err
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"maneki","plugins":[{"type":"maneki-cni",
		"ipam":{"type":"host-local","subnet":"10.201.%s.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]}`, strings.TrimPrefix(host, "h"))
	if err := os.MkdirAll("/etc/cni/net.d", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/etc/cni/net.d/10-maneki.conflist", []byte(conf), 0o644)
}

// binary is the path of the test binary.
func binary(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(exe)
}
