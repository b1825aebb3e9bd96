package lab

import (
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSpacesNeverUseTheFirstThread enters a namespace from many goroutines at
// once; the namespaces of the process as a whole must stay what they were.
func TestSpacesNeverUseTheFirstThread(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, err := lookupProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				s, err := enterSpace(p)
				if err != nil {
					t.Error(err)
					return
				}
				inside := ""
				err = s.do(func() error { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err })
				s.close()
				if err != nil || inside == before {
					t.Errorf("the thread is in %s, outside is %s: %v", inside, before, err)
				}
			})
		}
		group.Wait()
	}
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Errorf("the process is in %s, was in %s", after, before)
	}
}

func TestReusedPIDIsNeverKilled(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, err := lookupProcess(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Fatalf("process %v: %v", p, err)
	}
	other := Process{PID: p.PID, Start: p.Start - 1}
	if other.Alive() {
		t.Error("another start time counts as the same process")
	}
	if err := other.Signal(unix.SIGKILL); err != os.ErrProcessDone {
		t.Errorf("Signal = %v, want %v", err, os.ErrProcessDone)
	}
	if !p.Alive() {
		t.Error("the process was killed by a record of another one")
	}
}
