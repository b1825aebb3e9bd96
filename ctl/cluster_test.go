package ctl_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/exit"
)

// cli runs a command on the etcd at endpoint.
func cli(t *testing.T, endpoint string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = ctl.Execute(context.Background(), ctl.Options{
		Stdout: &out, Stderr: &errs,
		Environ: func(name string) string {
			return map[string]string{"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": endpoint}[name]
		},
	}, append([]string{"-c", "/etc/calico/calicoctl.cfg"}, args...))
	return code, out.String(), errs.String()
}

func wantOutput(t *testing.T, what, got, pattern string) {
	t.Helper()
	if !regexp.MustCompile("(?s)^" + pattern + "$").MatchString(got) {
		t.Errorf("%s is\n%swant it to match\n%s", what, got, pattern)
	}
}

// The commands about etcd itself, on Debian's.
func TestClusterCommands(t *testing.T) {
	server := datastoretest.StartEtcd(t)
	at := server.Endpoint()
	if code, _, stderr := cli(t, at, "create", "-f", writeFile(t, "pool.yaml", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.1.0.0/16}\n")); code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, stderr := cli(t, at, "datastore", "members")
	if code != 0 || stderr != "" {
		t.Errorf("members: %d %s", code, stderr)
	}
	wantOutput(t, "members", stdout, `\+-[-+]*\n\| +ID +\| NAME \| +STATE +\| +CLIENT URLS +\| +PEER URLS +\| VERSION \| +SIZE +\| +IN USE +\| ALARMS \|\n\+-[-+]*\n\| [0-9a-f]+ \| test \| leader +\| `+at+` \| http://[^ ]+ \| 3[.0-9]+ +\| +\d+ KiB \| +\d+ KiB +\| +\|\n\+-[-+]*\n`)
	code, stdout, _ = cli(t, at, "datastore", "members", "-o", "json")
	if code != 0 {
		t.Error(code)
	}
	wantOutput(t, "members -o json", stdout, `\[\n  \{\n    "id": "[0-9a-f]+",\n    "name": "test",\n    "state": "leader",.*`)
	for _, c := range []struct {
		args []string
		code exit.Code
		says string
	}{
		{[]string{"datastore", "members", "-o", "xml"}, exit.Usage, "unrecognized output format 'xml'; use -o json, or leave it out\n"},
		{[]string{"datastore", "members", "remove", "nobody"}, exit.NotFound, `no member has the name or ID "nobody"; 'maneki datastore members' lists what there is` + "\n"},
		{[]string{"datastore", "members", "remove", "test"}, exit.Conflict, "test is the only member: without it there is no datastore\n"},
		{[]string{"datastore", "snapshot"}, exit.Usage, "accepts 1 arg(s), received 0; see 'maneki datastore snapshot --help'\n"},
		{[]string{"datastore", "snapshot", "/nonexistent/x.db"}, exit.Input, "save snapshot: open /nonexistent/.x.db.part-"},
		{[]string{"datastore", "restore", "/nonexistent/x.db"}, exit.Input, "stat /nonexistent/x.db: no such file or directory\n"},
	} {
		code, _, stderr := cli(t, at, c.args...)
		if code != int(c.code) || !strings.HasPrefix(stderr, c.says) {
			t.Errorf("%v: %d %q, want %d %q", c.args, code, stderr, c.code, c.says)
		}
	}
	_, stdout, stderr = cli(t, at, "datastore", "defrag")
	wantOutput(t, "defrag", stdout+stderr, `Member test: \d+ KiB before, \d+ KiB now\.\n`)
	_, stdout, stderr = cli(t, at, "datastore", "disarm")
	wantOutput(t, "disarm", stdout+stderr, `Ended 0 alarm\(s\)\.\n`)

	file := filepath.Join(t.TempDir(), "snapshot.db")
	_, stdout, stderr = cli(t, at, "datastore", "snapshot", file)
	wantOutput(t, "snapshot", stdout+stderr, `Saved \d+ keys at revision \d+, \d+ KiB, to `+file+`\n`)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("snapshot: %v, %v", info, err)
	}
	testRestoreCommand(t, file)
}

// testRestoreCommand restores a snapshot of an external etcd into an embedded one.
func testRestoreCommand(t *testing.T, file string) {
	dir := filepath.Join(t.TempDir(), "etcd")
	restore := []string{"datastore", "restore", file, "--dir", dir, "--name", "h1"}
	_, stdout, stderr := cli(t, "http://127.0.0.1:1", restore...)
	wantOutput(t, "restore", stdout+stderr, `Restored \d+ keys of revision \d+ into `+dir+`\nStart the agent without --join\. .*\n`)
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: dir, Name: "h1", ClientURLs: []string{"http://127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	_, stdout, _ = cli(t, s.Endpoints()[0], "get", "ippools")
	wantOutput(t, "get on the restored store", stdout, `NAME +CIDR +SELECTOR +\np +10\.1\.0\.0/16 +all\(\) +\n\n`)
	code, _, stderr := cli(t, s.Endpoints()[0], append(restore, "--force")...)
	if code != int(exit.Busy) || !strings.Contains(stderr, "is in use by process") || !strings.HasSuffix(stderr, "; stop the agent first\n") {
		t.Errorf("restore under a server: %d %s", code, stderr)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = cli(t, "", restore...)
	if code != int(exit.Conflict) || !strings.HasSuffix(stderr, "the directory is not empty; --force moves it aside\n") {
		t.Errorf("restore over data: %d %s", code, stderr)
	}
	_, stdout, _ = cli(t, "", append(restore, "--force")...)
	wantOutput(t, "restore --force", stdout, `Moved what was there to `+dir+`/member\.old-[-\d]+\nRestored .*`)
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
