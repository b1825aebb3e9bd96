package docker

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// fullID is the length of a container's ID, in lower-case hexadecimal, as it stands in the names of control groups:
// /docker/ID, or docker-ID.scope under systemd.
const fullID = 64

// containerIn is the ID of the container whose processes are in a network namespace, by the control group of one of
// them; empty when there is none that this process sees. The newest are looked at first.
func containerIn(netns *os.File) (string, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(netns.Fd()), &want); err != nil {
		return "", fmt.Errorf("identify namespace: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(pids, func(a, b int) int { return cmp.Compare(b, a) })
	for _, pid := range pids {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil || st.Ino != want.Ino || st.Dev != want.Dev {
			continue
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			continue // it has ended
		}
		if id := groupID(groups); id != "" {
			return id, nil
		}
	}
	return "", nil
}

// groupID is the container's ID in a process's list of control groups (cgroups(7)): the innermost of a group's name, as
// Docker may run in a container itself.
func groupID(groups []byte) string {
	for line := range bytes.Lines(groups) {
		words := bytes.FieldsFunc(line, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') })
		for _, word := range slices.Backward(words) {
			if len(word) == fullID {
				return string(word)
			}
		}
	}
	return ""
}
