package agent

import (
	"context"
	"sync"

	"github.com/manekinet/maneki/dataplane/flows"
)

// reports shares the kernel's reports of denied packets among all who follow
// them: an NFLOG group has one listener (nfulnl_recv_config says EBUSY to the
// next). It listens while there is a follower. The zero value is ready.
type reports struct {
	life sync.Mutex // beginning and ending to listen
	stop context.CancelFunc
	done chan struct{} // closed when listening has ended; nil before the first time

	mu        sync.Mutex
	followers map[*follower]struct{}
}

// follower is told of reports. Neither function may wait.
type follower struct {
	got    func(flows.Report)
	lost   func()
	failed chan error
}

// listener is flows.FollowReports with the group and the names of interfaces
// given.
type listener func(ctx context.Context, got func(flows.Report), lost func()) error

// follow tells f of every report until ctx is done, then it returns nil; or
// until listening fails.
func (r *reports) follow(ctx context.Context, listen listener, got func(flows.Report), lost func()) error {
	f := &follower{got: got, lost: lost, failed: make(chan error, 1)}
	r.enter(f, listen)
	defer r.leave(f)
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.failed:
		return err
	}
}

func (r *reports) enter(f *follower, listen listener) {
	r.life.Lock()
	defer r.life.Unlock()
	r.mu.Lock()
	if r.followers == nil {
		r.followers = map[*follower]struct{}{}
	}
	r.followers[f] = struct{}{}
	r.mu.Unlock()
	select {
	case <-r.done:
	default:
		if r.done != nil {
			return // somebody listens
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.stop, r.done = stop, done
	go func() {
		defer close(done)
		err := listen(ctx, func(rep flows.Report) { r.each(func(f *follower) { f.got(rep) }) }, func() { r.each(func(f *follower) { f.lost() }) })
		r.each(func(f *follower) {
			select {
			case f.failed <- err:
			default:
			}
		})
	}()
}

// leave ends the listening when nobody is left.
func (r *reports) leave(f *follower) {
	r.life.Lock()
	defer r.life.Unlock()
	r.mu.Lock()
	delete(r.followers, f)
	left := len(r.followers)
	r.mu.Unlock()
	if left == 0 {
		r.stop()
		<-r.done
	}
}

func (r *reports) each(do func(*follower)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.followers {
		do(f)
	}
}
