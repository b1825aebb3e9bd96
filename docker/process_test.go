package docker

import (
	"os"
	"strings"
	"testing"
)

func TestGroupID(t *testing.T) {
	outer, inner := strings.Repeat("0a", 32), strings.Repeat("f9", 32)
	for groups, want := range map[string]string{
		"12:memory:/docker/" + outer + "\n0::/\n":                        outer,
		"0::/\n1:name=systemd:/docker/" + outer + "\n":                   outer,
		"0::/system.slice/docker-" + outer + ".scope\n":                  outer,
		"0::/docker/" + outer + "/docker/" + inner + "/init\n":           inner,
		"0::/user.slice/user-1000.slice\n":                               "",
		"0::/docker/" + outer[1:] + "\n":                                 "",
		"4:memory:/process_api/54d988b8590be3a9f5a137dffc508d97\n0::/\n": "",
		"0::/docker/" + strings.ToUpper(strings.Repeat("0a", 32)) + "\n": "",
		"": "",
	} {
		if got := groupID([]byte(groups)); got != want {
			t.Errorf("%q: %q, want %q", groups, got, want)
		}
	}
}

// The namespace of this process is no container's, unless the test runs in one.
func TestContainerIn(t *testing.T) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	id, err := containerIn(f)
	if err != nil || groupID(own) != "" && id == "" {
		t.Errorf("container %q, %v; the test's own groups are\n%s", id, err, own)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if id, err := containerIn(null); err != nil || id != "" {
		t.Errorf("no namespace: container %q, %v", id, err)
	}
}
