// Package sysctl sets kernel parameters of one network namespace: desired.Sysctls below /proc/sys/net.
//
// The kernel gives no notice of most changes, so the table of an Applier repairs on its resync and whenever the agent
// has a reason (an interface appeared, RTM_NEWNETCONF).
package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/reconcile"
)

// root is above everything that we write.
const root = "/proc/sys/net"

// families are the directories below root that hold parameters of a network namespace. Everything else in /proc/sys
// belongs to the machine.
var families = [...]string{"ipv4", "ipv6"}

// maxValue is longer than any parameter below net.
const maxValue = 4096

// Applier is the parameters of one network namespace. Its methods are safe for concurrent use.
//
// A key is the path below /proc/sys, with slashes: "net/ipv4/conf/cali1/proxy_arp".
type Applier struct {
	// dirs is one directory for each family; nil for one that the kernel does not have. A directory stays in the namespace
	// in which it was opened, whichever thread uses it: the kernel resolves the family by the thread that opens it, and
	// what is below by the directory. (This is not true of /proc/sys/net itself.) It also keeps every key inside.
	dirs [len(families)]*os.Root

	mu      sync.Mutex
	managed map[string]string // every key that was put and not deleted, with the value wanted
}

var _ reconcile.Applier[string, string] = (*Applier)(nil)

// New opens the parameters of the network namespace with that path; empty is that of the calling thread.
func New(namespace string) (*Applier, error) {
	a := &Applier{managed: map[string]string{}}
	err := inNamespace(namespace, func() error {
		for i, family := range families {
			dir, err := os.OpenRoot(root + "/" + family)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			a.dirs[i] = dir
		}
		return nil
	})
	if err != nil {
		_ = a.Close()
		return nil, fmt.Errorf("open kernel parameters: %w", err)
	}
	return a, nil
}

// inNamespace runs f on a thread in the namespace. The thread ends with its goroutine: it is never unlocked.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := os.Open(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace %s: %w", path, err)
			}
			return f()
		}()
	}()
	return <-done
}

// Close releases the directories. Parameters stay.
func (a *Applier) Close() error {
	var errs []error
	for _, dir := range a.dirs {
		if dir != nil {
			errs = append(errs, dir.Close())
		}
	}
	return errors.Join(errs...)
}

// Dump reads the parameters that were put and not deleted. Those of interfaces that are gone are left out.
func (a *Applier) Dump(ctx context.Context) (map[string]string, error) {
	a.mu.Lock()
	managed := maps.Clone(a.managed)
	a.mu.Unlock()
	got := make(map[string]string, len(managed))
	for k, want := range managed {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, err := a.read(k, want)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		got[k] = v
	}
	return got, nil
}

// Put sets a parameter if it has another value.
func (a *Applier) Put(_ context.Context, key, value string) error {
	if err := validate(key, value); err != nil {
		return err
	}
	now, err := a.read(key, value)
	if err == nil && now != value {
		err = a.write(key, value)
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.managed[key] = value
	return nil
}

// Delete stops managing a parameter and leaves its value: what it was before us may be wrong by now, parameters of
// interfaces go with them, and a host that stops routing when the agent is removed would surprise its owner.
func (a *Applier) Delete(_ context.Context, key string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.managed, key)
	return nil
}

// open opens the file of a key that validate accepts; fs.ErrNotExist when the kernel has not got the parameter.
func (a *Applier) open(key string, flag int) (*os.File, error) {
	for i, family := range families {
		path, ok := strings.CutPrefix(key, "net/"+family+"/")
		switch {
		case !ok:
		case a.dirs[i] == nil:
			return nil, errNoFamily
		default:
			f, err := a.dirs[i].OpenFile(path, flag, 0)
			return f, bare(err)
		}
	}
	return nil, fs.ErrNotExist
}

// errNoFamily means that the kernel was built or started without IPv6, or even IPv4.
var errNoFamily = fmt.Errorf("%w: this kernel has no such protocol", fs.ErrNotExist)

// read is the value of a parameter. A kernel without IPv6 has none of its parameters; "off" is then true all the same.
func (a *Applier) read(key, want string) (string, error) {
	f, err := a.open(key, os.O_RDONLY)
	if errors.Is(err, errNoFamily) && want == "0" {
		return want, nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	defer f.Close()
	buf := make([]byte, maxValue)
	n, err := f.Read(buf) // one read: the kernel gives the value at once or not at all
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, bare(err))
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func (a *Applier) write(key, value string) error {
	f, err := a.open(key, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value + "\n"); err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, bare(err))
	}
	return nil
}

// bare is the error without the path, which the message has already.
func bare(err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func validate(key, value string) error {
	below := func(family string) bool { return strings.HasPrefix(key, "net/"+family+"/") }
	if !slices.ContainsFunc(families[:], below) || !fs.ValidPath(key) {
		return fmt.Errorf("parameter %q: must be a path below net/ipv4 or net/ipv6, with slashes and without empty, . and .. parts", key)
	}
	if value == "" || len(value) > maxValue || strings.TrimSpace(value) != value || strings.ContainsAny(value, "\n\x00") {
		return fmt.Errorf("parameter %s: value %q: must be one line, without blanks around it", key, value)
	}
	return nil
}
