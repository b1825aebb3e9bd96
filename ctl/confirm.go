package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

// confirmLimit bounds how long a change may wait for its confirmation.
const confirmLimit = time.Hour

// takeBackWithin bounds the taking back, which goes on when the command has
// been interrupted.
const takeBackWithin = 30 * time.Second

// errTakenBack is the end of a change that nobody confirmed.
var errTakenBack = errors.New("not confirmed: everything is as it was before")

// before is a resource as it was; object nil: it did not exist.
type before struct {
	item   item
	object api.Object
}

// writeConfirmed lets the verb work and takes everything back unless somebody
// types yes within the time given. A change that cuts the very session it was
// made from is taken back that way, too: the command ignores that its terminal
// is gone.
func (a *app) writeConfirmed(ctx context.Context, in *inputFlags, v verb, wait time.Duration) error {
	switch {
	case in.filename == "-":
		return exit.New(exit.Usage, "name a file with -f", errors.New("--confirm reads the answer from stdin, so the resources cannot come from there"))
	case wait < time.Second || wait > confirmLimit:
		return exit.New(exit.Usage, "give 1s to 1h", fmt.Errorf("--confirm %s is out of range", wait))
	}
	items, err := in.read(a.Stdin)
	if err != nil {
		return err
	}
	store, _, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	client := resource.New(store, nil)
	old, err := asBefore(ctx, client, items)
	if err != nil {
		return err
	}
	failed := a.write(ctx, in, v)
	if failed == nil && a.confirmed(ctx, wait) {
		fmt.Fprintln(a.Stdout, "Confirmed.")
		return nil
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackWithin)
	defer cancel()
	if err := takeBack(limited, client, old); err != nil {
		return errors.Join(failed, fmt.Errorf("take the change back: %w", err))
	}
	if failed != nil {
		return failed
	}
	return exit.New(exit.General, "", errTakenBack)
}

func asBefore(ctx context.Context, client *resource.Client, items []item) ([]before, error) {
	var out []before
	for _, i := range items {
		m := i.object.Meta()
		o, err := client.Get(ctx, i.kind, m.Namespace, m.Name)
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return nil, fmt.Errorf("read %s before it is changed: %w", i.id(), err)
		}
		if err != nil {
			o = nil
		}
		out = append(out, before{i, o})
	}
	return out, nil
}

// takeBack restores in reverse order: what was created last may need what was
// created first.
func takeBack(ctx context.Context, client *resource.Client, old []before) error {
	var errs []error
	for _, b := range slices.Backward(old) {
		var err error
		if b.object == nil {
			o := b.item.copy().object
			o.Meta().ResourceVersion = ""
			if err = client.Delete(ctx, o); errors.Is(err, datastore.ErrNotFound) {
				err = nil
			}
		} else {
			b.object.Meta().ResourceVersion = ""
			err = client.Apply(ctx, b.object)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.item.id(), err))
		}
	}
	return errors.Join(errs...)
}

// confirmed waits for a yes on stdin. The end of stdin is no answer: a session
// that was cut looks like that.
func (a *app) confirmed(ctx context.Context, wait time.Duration) bool {
	fmt.Fprintf(a.Stdout, "Type yes within %s to keep this; otherwise it is taken back: ", wait)
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answer := make(chan string, 1)
	go func() { // ends with stdin, or with the process
		line, err := bufio.NewReader(a.Stdin).ReadString('\n')
		if err == nil || errors.Is(err, io.EOF) && line != "" {
			answer <- strings.ToLower(strings.TrimSpace(line))
		}
	}()
	select {
	case text := <-answer:
		return text == "yes" || text == "y"
	case <-limited.Done():
		fmt.Fprintln(a.Stdout)
		return false
	}
}
