package ctl

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress shows on a terminal how far a long work has come, and nothing
// anywhere else.
type progress struct {
	w     io.Writer // nil: no terminal
	what  string
	total int
	done  int
	shown time.Time
	now   func() time.Time
}

// progressEvery is the time between two updates; work shorter than that shows
// nothing.
const progressEvery = 200 * time.Millisecond

func (a *app) progress(what string, total int) *progress {
	p := &progress{what: what, total: total, now: time.Now, shown: time.Now()}
	if f, ok := a.Stderr.(*os.File); ok && isTerminal(f) {
		p.w = f
	}
	return p
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (p *progress) add(n int) {
	p.done += n
	if now := p.now(); p.w != nil && now.Sub(p.shown) >= progressEvery {
		p.shown = now
		fmt.Fprintf(p.w, "\r%d of %d %s\x1b[K", p.done, p.total, p.what)
	}
}

// end takes the line away.
func (p *progress) end() {
	if p.w != nil {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
