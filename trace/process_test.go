package trace

import (
	"os/exec"
	"testing"

	"github.com/manekinet/maneki/dataplane/nstest"
)

// sleeper runs a process in a namespace until the test ends.
func sleeper(t *testing.T, ns *nstest.NS) int {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	var err error
	ns.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}
