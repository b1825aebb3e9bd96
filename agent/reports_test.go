package agent

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/manekinet/maneki/dataplane/flows"
)

// TestReportsAreShared: one listens for all, however many follow; it ends with
// the last of them, and begins again for the next.
func TestReportsAreShared(t *testing.T) {
	var r reports
	var listening, begun atomic.Int32
	listen := func(ctx context.Context, got func(flows.Report), _ func()) error {
		begun.Add(1)
		if listening.Add(1) > 1 {
			t.Error("two listen at once")
		}
		defer listening.Add(-1)
		for ctx.Err() == nil {
			got(flows.Report{Label: "x"})
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	for round := range int32(3) {
		ctx, stop := context.WithCancel(t.Context())
		var heard, gone sync.WaitGroup
		for range 4 {
			heard.Add(1)
			var once sync.Once
			gone.Go(func() {
				if err := r.follow(ctx, listen, func(flows.Report) { once.Do(heard.Done) }, func() {}); err != nil {
					t.Error(err)
				}
			})
		}
		heard.Wait()
		stop()
		gone.Wait()
		if listening.Load() != 0 || begun.Load() != round+1 {
			t.Errorf("round %d: %d listen, %d have begun", round, listening.Load(), begun.Load())
		}
	}
	broken := errors.New("broken")
	fail := func(context.Context, func(flows.Report), func()) error { return broken }
	for range 2 { // a failure is told, and the next follower tries again
		if err := r.follow(t.Context(), fail, nil, nil); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
}
