package endpoint

import (
	"context"
	"sync"
)

// locks gives each name a lock of its own, for as long as somebody holds it or waits for it.
type locks struct {
	mu    sync.Mutex
	names map[string]*nameLock
}

type nameLock struct {
	turn  chan struct{} // capacity one: who can send holds the lock
	users int           // holders and waiters; guarded by locks.mu
}

// lock waits until nobody else holds name. The error is the context's.
func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.names == nil {
		l.names = map[string]*nameLock{}
	}
	n := l.names[name]
	if n == nil {
		n = &nameLock{turn: make(chan struct{}, 1)}
		l.names[name] = n
	}
	n.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(l.names, name)
		}
	}
	select {
	case n.turn <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil { // both were possible: a request that was given up must not begin
		<-n.turn
		leave()
		return nil, err
	}
	return func() { <-n.turn; leave() }, nil
}
