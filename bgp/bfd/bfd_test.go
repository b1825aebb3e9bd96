package bfd

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPacketOnTheWire(t *testing.T) {
	p := Packet{
		State: Up, Diag: NeighborSignaledDown, Poll: true, Multiplier: 3, Mine: 0x01020304, Yours: 0x0a0b0c0d,
		DesiredMinTx: 100 * time.Millisecond, RequiredMinRx: 300 * time.Millisecond,
	}
	want := []byte{0x23, 0xe0, 3, 24, 1, 2, 3, 4, 10, 11, 12, 13, 0, 1, 0x86, 0xa0, 0, 4, 0x93, 0xe0, 0, 0, 0, 0}
	got := p.Encode()
	if string(got) != string(want) {
		t.Fatalf("got % x\nwant % x", got, want)
	}
	back, err := Decode(got)
	if err != nil || back != p {
		t.Errorf("came back as %+v, %v", back, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := Packet{State: Down, Multiplier: 3, Mine: 7}.Encode()
	for _, c := range []struct {
		name string
		edit func(b []byte) []byte
	}{
		{"short", func(b []byte) []byte { return b[:23] }},
		{"empty", func([]byte) []byte { return nil }},
		{"version 0", func(b []byte) []byte { b[0] = 0; return b }},
		{"version 2", func(b []byte) []byte { b[0] = 2 << 5; return b }},
		{"length below", func(b []byte) []byte { b[3] = 23; return b }},
		{"length above", func(b []byte) []byte { b[3] = 25; return b }},
		{"multiplier 0", func(b []byte) []byte { b[2] = 0; return b }},
		{"multipoint", func(b []byte) []byte { b[1] |= 1; return b }},
		{"authenticated", func(b []byte) []byte { b[1] |= 4; return b }},
		{"no discriminator", func(b []byte) []byte { b[7] = 0; return b }},
		{"up without ours", func(b []byte) []byte { b[1] = 3 << 6; return b }},
		{"init without ours", func(b []byte) []byte { b[1] = 2 << 6; return b }},
	} {
		if p, err := Decode(c.edit(append([]byte{}, good...))); err == nil {
			t.Errorf("%s: read as %+v", c.name, p)
		}
	}
	if _, err := Decode(append(good, 1, 2, 3)); err != nil {
		t.Error("octets after the packet:", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Packet{State: Up, Multiplier: 3, Mine: 7, Yours: 8}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err != nil {
			return
		}
		back, err := Decode(p.Encode())
		if err != nil || back != p {
			t.Fatalf("%+v came back as %+v, %v", p, back, err)
		}
	})
}

// world is two machines and the path between them, under a clock of its own.
type world struct {
	now  time.Time
	end  [2]*Machine
	path [2]bool // from 0 to 1, from 1 to 0
	sent [2]int
	last [2]Packet
}

func newWorld(a, b Timing) *world {
	w := &world{now: time.Unix(1000, 0), path: [2]bool{true, true}}
	w.end[0] = New(w.now, 11, a, rand.New(rand.NewPCG(1, 1)))
	w.end[1] = New(w.now, 22, b, rand.New(rand.NewPCG(2, 2)))
	return w
}

func (w *world) deliver(from int, packets []Packet) {
	for hops := 0; len(packets) > 0 && hops < 100; hops++ {
		p := packets[0]
		packets = packets[1:]
		w.sent[from]++
		w.last[from] = p
		q, err := Decode(p.Encode())
		if err != nil {
			panic(err)
		}
		if w.path[from] {
			w.deliver(1-from, w.end[1-from].Receive(w.now, q))
		}
	}
}

// run lets d pass.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); ; {
		next := end
		for _, m := range w.end {
			if at := m.Deadline(); !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		if next.After(w.now) {
			w.now = next
		}
		if !w.now.Before(end) {
			return
		}
		for i, m := range w.end {
			w.deliver(i, m.Advance(w.now))
		}
	}
}

func (w *world) both(s State) bool { return w.end[0].State() == s && w.end[1].State() == s }

func TestSessionComesUpAndNoticesLoss(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(1100 * time.Millisecond)
	if !w.both(Up) {
		t.Fatalf("after a second: %s and %s", w.end[0].State(), w.end[1].State())
	}
	before := w.sent[0]
	w.run(10 * time.Second)
	if n := w.sent[0] - before; n < 95 || n > 140 {
		t.Errorf("%d packets in 10 s at 100 ms with up to 25 %% jitter", n)
	}
	if d := w.end[0].DetectionTime(); d != 300*time.Millisecond {
		t.Errorf("detection time %s", d)
	}
	w.path[0], w.path[1] = false, false
	w.run(301 * time.Millisecond)
	if !w.both(Down) || w.end[0].Diag() != DetectionTimeExpired {
		t.Fatalf("after 301 ms without packets: %s (%s) and %s", w.end[0].State(), w.end[0].Diag(), w.end[1].State())
	}
	before = w.sent[0]
	w.run(10 * time.Second)
	if n := w.sent[0] - before; n < 9 || n > 15 {
		t.Errorf("%d packets in 10 s while down: want about one a second", n)
	}
	w.path[0], w.path[1] = true, true
	w.run(1100 * time.Millisecond)
	if !w.both(Up) {
		t.Error("the session does not come back")
	}
}

func TestOneWayLossTakesBothDown(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(2 * time.Second)
	w.path[0] = false // 1 hears nothing any more, 0 still hears 1
	w.run(350 * time.Millisecond)
	if w.end[1].State() == Up || w.end[0].State() == Up {
		t.Errorf("%s and %s", w.end[0].State(), w.end[1].State())
	}
	if w.end[0].Diag() != NeighborSignaledDown || w.end[1].Diag() != DetectionTimeExpired {
		t.Errorf("reasons %s and %s", w.end[0].Diag(), w.end[1].Diag())
	}
}

func TestSlowerEndDecides(t *testing.T) {
	w := newWorld(Timing{50 * time.Millisecond, 3}, Timing{400 * time.Millisecond, 5})
	w.run(5 * time.Second)
	if !w.both(Up) {
		t.Fatal("not up")
	}
	if d := w.end[0].Interval(); d != 400*time.Millisecond {
		t.Errorf("0 sends every %s although 1 takes no more than one in 400ms", d)
	}
	if a, b := w.end[0].DetectionTime(), w.end[1].DetectionTime(); a != 2*time.Second || b != 1200*time.Millisecond {
		t.Errorf("detection times %s and %s, want 2s (5 x 400 ms) and 1.2s (3 x 400 ms)", a, b)
	}
}

func TestRetimeWhileUp(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(2 * time.Second)
	for _, d := range []time.Duration{time.Second, 30 * time.Millisecond, 200 * time.Millisecond} {
		w.end[0].Retime(w.now, Timing{d, 3})
		w.end[1].Retime(w.now, Timing{d, 3})
		for range 200 {
			w.run(20 * time.Millisecond)
			if !w.both(Up) {
				t.Fatalf("going to %s the session went down: %s, %s", d, w.end[0].Diag(), w.end[1].Diag())
			}
		}
		if w.end[0].polling || w.end[1].polling || w.end[0].Interval() != d || w.end[1].DetectionTime() != 3*d {
			t.Errorf("%s is not in force: polling %t %t, interval %s, detection %s", d, w.end[0].polling, w.end[1].polling, w.end[0].Interval(), w.end[1].DetectionTime())
		}
	}
}

func TestAdminDownIsNoFailure(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(2 * time.Second)
	w.deliver(0, []Packet{w.end[0].Shut(w.now)})
	if m := w.end[1]; m.State() != Down || m.RemoteState() != AdminDown || m.Diag() != NeighborSignaledDown {
		t.Errorf("%s, neighbour %s, %s", m.State(), m.RemoteState(), m.Diag())
	}
	w.run(5 * time.Second)
	if w.end[0].State() != AdminDown || w.end[1].State() != Down {
		t.Errorf("%s and %s", w.end[0].State(), w.end[1].State())
	}
}

func TestDemandOfTheNeighbour(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(2 * time.Second)
	p := w.last[1]
	p.Demand, p.Poll, p.Final = true, false, false
	w.end[0].Receive(w.now, p)
	if at := w.end[0].Deadline(); at.IsZero() || at.Before(w.now.Add(200*time.Millisecond)) {
		t.Errorf("next deadline %s from now: periodic packets must stop", at.Sub(w.now))
	}
	p.Poll = true
	if out := w.end[0].Receive(w.now, p); len(out) != 1 || !out[0].Final || out[0].Poll {
		t.Errorf("answer to a poll: %+v", out)
	}
	p.Poll, p.Demand, p.RequiredMinRx = false, false, 0
	w.end[0].Receive(w.now, p)
	if !w.end[0].silent() {
		t.Error("packets are sent to a neighbour that wants none")
	}
}

func TestForeignDiscriminatorIsIgnored(t *testing.T) {
	w := newWorld(DefaultTiming(), DefaultTiming())
	w.run(2 * time.Second)
	if out := w.end[0].Receive(w.now, Packet{State: Down, Multiplier: 3, Mine: 22, Yours: 999}); out != nil || w.end[0].State() != Up {
		t.Errorf("%+v, state %s", out, w.end[0].State())
	}
}

// TestNoFalseAlarm lets packets be lost at random, but never as many in a row as the multiplier: the session
// must stay up. And whatever is received, a deadline is never far in the past.
func TestNoFalseAlarm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(
			Timing{time.Duration(rapid.IntRange(10, 500).Draw(t, "a")) * time.Millisecond, uint8(rapid.IntRange(3, 6).Draw(t, "ma"))},
			Timing{time.Duration(rapid.IntRange(10, 500).Draw(t, "b")) * time.Millisecond, uint8(rapid.IntRange(3, 6).Draw(t, "mb"))})
		w.run(5 * time.Second)
		if !w.both(Up) {
			t.Fatal("not up")
		}
		for range 50 {
			from := rapid.IntRange(0, 1).Draw(t, "from")
			w.path[from] = false
			for n := w.sent[from]; w.sent[from] == n; {
				w.run(time.Millisecond)
			}
			w.path[from] = true
			for n := w.sent[from]; w.sent[from] == n; {
				w.run(time.Millisecond)
			}
			if !w.both(Up) {
				t.Fatalf("down after one lost packet: %s, %s", w.end[0].Diag(), w.end[1].Diag())
			}
		}
	})
}
