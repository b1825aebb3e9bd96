package labcmd_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/lab/labcmd"
)

// run executes a command line below a root with the flags of the real one:
// its -c and -l must not clash with those of the tools.
func run(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "maneki", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().StringP("config", "c", "", "")
	root.PersistentFlags().StringP("log-level", "l", "", "")
	root.AddCommand(labcmd.Command())
	var out bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"lab"}, args...))
	err := root.Execute()
	return out.String(), err
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	state := filepath.Join(t.TempDir(), "labs")
	for _, tt := range []struct {
		name, stdin, args string
		code              exit.Code
		text              string
	}{
		{"topology", "hosst: []", "up -f -", exit.Input, "topology: unknown field hosst, allowed: name, subnets, routers, hosts, etcd, containers"},
		{"no file", "", "up /no/such/file", exit.Input, "read topology: open /no/such/file: no such file or directory"},
		{"file twice", "", "up a -f b", exit.Usage, "give the topology once: FILE or -f FILE"},
		{"hosts", "", "up --hosts 0", exit.Usage, "hosts 0 is not allowed, want 1 to 64"},
		{"name", "", "up --name A", exit.Input, `topology: field name: name "A" is not allowed, want 1 to 15 of a-z, 0-9 and - (not at the ends)`},
		{"no lab", "", "status", exit.NotFound, "there is no lab lab: start one with `maneki lab up`"},
		{"no lab to exec in", "", "exec c1 true", exit.NotFound, "there is no lab lab: start one with `maneki lab up`"},
		{"exec without command", "", "exec c1", exit.Usage, "lab exec: no command given"},
		{"run without dashes", "", "run h1 c1 sh", exit.Usage, "want HOST NAME, and a command only after --"},
		{"label", "", "run h1 c1 --label x", exit.Usage, `label "x" is not allowed, want KEY=VALUE`},
		{"agent action", "", "agent pet h1", exit.Usage, `action "pet" is not allowed, allowed: start, stop, restart, kill, log`},
		{"status format", "", "status -o xml", exit.Usage, `output "xml" is not allowed, allowed: json`},
		{"ping without address", "", "ping -c 3", exit.Usage, "ping: want one address, got 0; see 'maneki lab ping --help'"},
		{"ping a name", "", "ping nobody.invalid", exit.Usage, `"nobody.invalid" is neither an IP address nor a name in /etc/hosts`},
		{"ping interval", "", "ping -i x 127.0.0.1", exit.Usage, ""},
		{"connect", "", "connect 127.0.0.1", exit.Usage, `"127.0.0.1" is not allowed, want ADDRESS:PORT or [IPV6]:PORT`},
		{"pause by hand", "", "pause --kind host", exit.General, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := strings.Fields(tt.args)
			if args[0] != "ping" { // which reads all its flags itself
				args = append([]string{"--root", state}, args...)
			}
			out, err := run(t, tt.stdin, args...)
			if err == nil {
				t.Fatalf("no error, output %q", out)
			}
			if exit.CodeOf(err) != tt.code || tt.text != "" && err.Error() != tt.text {
				t.Errorf("code %d, error %q; want %d, %q", exit.CodeOf(err), err, tt.code, tt.text)
			}
		})
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	for _, sub := range labcmd.Command().Commands() {
		out, err := run(t, "", sub.Name(), "--help")
		if err != nil || !strings.Contains(out, "maneki lab "+sub.Name()) {
			t.Errorf("%s --help: %v\n%s", sub.Name(), err, out)
		}
	}
}

// TestPingOnLoopback: seconds, durations and the count are read as in ping.
func TestPingOnLoopback(t *testing.T) {
	out, err := run(t, "", "ping", "-c", "2", "-i", "0.01", "-W", "500ms", "-q", "127.0.0.1")
	if err != nil || !strings.Contains(out, "2 packets transmitted, 2 packets received, 0% packet loss") {
		t.Errorf("%v\n%s", err, out)
	}
}
