package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Removed says what Down found.
type Removed struct {
	Processes int
	State     bool
}

// Down removes a lab: all its processes, and with them every namespace, link
// and mount, then its state. It does the same for what a crash left, and
// succeeds when there is nothing.
func Down(ctx context.Context, root, name string) (Removed, error) {
	if err := requireOutside(); err != nil {
		return Removed{}, err
	}
	l, err := newLab(Config{Root: root, Name: name})
	if err != nil {
		return Removed{}, err
	}
	if l.lock, err = lockLab(ctx, l.cfg.Root, l.cfg.Name); err != nil {
		return Removed{}, err
	}
	return l.remove(ctx)
}

// Destroy removes the lab that l holds and closes l.
func (l *Lab) Destroy(ctx context.Context) error {
	_, err := l.remove(ctx)
	l.reapers.Wait()
	return err
}

func (l *Lab) remove(ctx context.Context) (Removed, error) {
	var got Removed
	if l.lock == nil {
		return got, errors.New("remove lab: the lock is not held")
	}
	_, err := os.Stat(l.dir())
	got.State = err == nil
	l.mu.Lock()
	for p, s := range l.spaces { // a thread inside would keep its namespaces
		s.close()
		delete(l.spaces, p)
	}
	l.mu.Unlock()
	got.Processes, err = l.cleanCount(ctx)
	err = errors.Join(err, removeLock(l.cfg.Root, l.lock))
	l.Close()
	return got, err
}

// clean removes processes and state of the lab's name; the lock is kept.
func (l *Lab) clean(ctx context.Context) error {
	_, err := l.cleanCount(ctx)
	return err
}

func (l *Lab) cleanCount(ctx context.Context) (int, error) {
	n, err := l.killRecorded(ctx)
	if err != nil {
		return n, err
	}
	swept, err := sweep(ctx, l.cfg.Name)
	if err != nil {
		return n + swept, err
	}
	return n + swept, l.removeState()
}

// killRecorded kills what pid files name. The sweep would find the same
// processes by their marker; a process that cleared its environment is only
// found here.
func (l *Lab) killRecorded(ctx context.Context) (int, error) {
	files, err := filepath.Glob(filepath.Join(l.dir(), "*", "*.pid"))
	if err != nil {
		return 0, fmt.Errorf("list processes of lab %s: %w", l.cfg.Name, err)
	}
	var alive []Process
	for _, f := range files {
		if p := readPID(f); p.Alive() {
			alive = append(alive, p)
		}
	}
	for _, p := range alive {
		if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return 0, err
		}
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for _, p := range alive {
		if err := p.waitGone(wait); err != nil {
			return 0, err
		}
	}
	return len(alive), nil
}

// removeState removes the state directory and the directories of the machine
// that the lab had to make, the latter only when they are empty.
func (l *Lab) removeState() error {
	rec, err := readRecord(l.cfg.Root, l.cfg.Name)
	if err == nil {
		for _, d := range slices.Backward(rec.Made) {
			_ = os.Remove(d)
		}
	}
	if err := os.RemoveAll(l.dir()); err != nil {
		return fmt.Errorf("remove state of lab %s: %w", l.cfg.Name, err)
	}
	return nil
}
