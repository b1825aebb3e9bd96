package lab

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// overlaid are the directories of the machine that a host sees but changes
// only for itself.
var overlaid = []string{"/etc", "/opt", "/var/lib"}

// private are the directories that start empty on every host: what agents,
// CNI callers and datastores write.
var private = []string{
	"/etc/calico", "/etc/cni/net.d", "/opt/cni/bin",
	"/var/lib/calico", "/var/lib/cni", "/var/lib/etcd", "/var/lib/maneki",
}

// privateRun are directories of the host's own, empty /run.
var privateRun = []string{"/run/calico", "/run/lock", "/run/maneki"}

// furnishMounts makes the calling process's new mount namespace that of a
// host. Nothing of it is visible outside, and it goes with the namespace.
func furnishMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	for _, dir := range overlaid {
		if err := cover(dir, func() error { return mountOverlay(dir) }); err != nil {
			return err
		}
	}
	for _, dir := range private {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
		if err := mountTmpfs(dir); err != nil {
			return err
		}
	}
	for _, dir := range privateRun {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return furnishSys()
}

// furnishSys shows the host's own devices under /sys/class/net and gives it a
// bpffs of its own, so that pinned objects of two hosts never meet.
func furnishSys() error {
	err := cover("/sys", func() error {
		if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount sysfs on /sys: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = unix.Mount("bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if err != nil && err != unix.ENODEV && err != unix.ENOENT { // a kernel without BPF has neither
		return fmt.Errorf("mount bpf on /sys/fs/bpf: %w", err)
	}
	return nil
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// mountOverlay makes dir writable for this mount namespace only. The written
// layer lies in the host's private /run.
func mountOverlay(dir string) error {
	layer := filepath.Join("/run/.lab", strings.ReplaceAll(dir[1:], "/", "-"))
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make layer of %s: %w", dir, err)
		}
	}
	options := "lowerdir=" + dir + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay on %s (the kernel needs CONFIG_OVERLAY_FS): %w", dir, err)
	}
	return nil
}

// cover runs mount, which mounts something over dir, and shows again what was
// mounted below dir before: directories by a bind mount, single files (Docker
// mounts /etc/hosts and its like) by a copy, so that writing to them stays
// inside the host.
func cover(dir string, mount func() error) error {
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	fds := make([]int, 0, len(below))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, m := range below {
		fd, err := unix.Open(m, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open mount %s: %w", m, err)
		}
		fds = append(fds, fd)
	}
	if err := mount(); err != nil {
		return err
	}
	for i, m := range below {
		if err := uncover(fds[i], m); err != nil {
			return err
		}
	}
	return nil
}

func uncover(fd int, target string) error {
	source := fmt.Sprintf("/proc/self/fd/%d", fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat mount %s: %w", target, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		data, err := os.ReadFile(source)
		if err != nil {
			return fmt.Errorf("copy %s: %w", target, err)
		}
		if err := os.WriteFile(target, data, os.FileMode(st.Mode&0o777)); err != nil {
			return fmt.Errorf("copy %s: %w", target, err)
		}
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(target, 0o755); err != nil && !os.IsPermission(err) {
			return fmt.Errorf("make mount point %s: %w", target, err)
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s again: %w", target, err)
	}
	return nil
}

// mountsBelow lists the topmost mount points strictly below dir.
func mountsBelow(dir string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseMountsBelow(string(raw), dir), nil
}

// parseMountsBelow reads mountinfo (proc(5)): field 5 is the mount point, with
// blanks written as octal.
func parseMountsBelow(mountinfo, dir string) []string {
	var all []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescapeOctal(fields[4]); strings.HasPrefix(point, dir+"/") {
			all = append(all, point)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(a, b) })
	var top []string
	for _, m := range slices.Compact(all) {
		under := slices.ContainsFunc(top, func(t string) bool { return strings.HasPrefix(m, t+"/") })
		if !under {
			top = append(top, m)
		}
	}
	return top
}

func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
