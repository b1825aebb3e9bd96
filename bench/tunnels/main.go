// Command tunnels measures what encapsulation costs between two workloads, and
// what a thousand remote hosts cost an agent:
//
//	tunnels serve                 answer on this workload, until killed
//	tunnels measure NAME ADDR     one line: name, round trip p50 and p99, stream, connections
//	tunnels trips NAME ADDR       only the round trips, for a shorter time
//	tunnels table                 medians of such lines on standard input, as a table
//	tunnels hosts                 in the lab host that keeps the datastore; see hosts.go
//
// See bench/run, which interleaves the ways.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Ports of the three services.
const (
	portEcho    = ":7301" // sends back what it gets
	portSink    = ":7302" // counts what it gets, and tells at the end
	portConnect = ":7303" // one byte each way
)

const (
	span    = time.Second // of each measurement
	message = 64          // bytes of a round trip
	workers = 4           // that connect at once
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tunnels:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 3 && args[0] == "measure":
		return measure(args[1], args[2])
	case len(args) == 3 && args[0] == "trips":
		return onlyTrips(args[1], args[2])
	case len(args) == 1 && args[0] == "table":
		return table(os.Stdin, os.Stdout)
	case len(args) > 0 && args[0] == "hosts":
		return hosts(args[1:])
	}
	return errors.New("usage: tunnels serve | measure NAME ADDR | trips NAME ADDR | table | hosts [flags]")
}

func serve() error {
	failed := make(chan error, 3)
	for port, answer := range map[string]func(net.Conn) error{
		portEcho: func(c net.Conn) error { _, err := io.Copy(c, c); return err },
		portSink: func(c net.Conn) error {
			n, err := io.Copy(io.Discard, c)
			if err == nil {
				err = binary.Write(c, binary.BigEndian, n)
			}
			return err
		},
		portConnect: func(c net.Conn) error { _, err := io.CopyN(c, c, 1); return err },
	} {
		l, err := net.Listen("tcp4", port)
		if err != nil {
			return err
		}
		go func() { failed <- accept(l, answer) }()
	}
	return <-failed
}

func accept(l net.Listener, answer func(net.Conn) error) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = answer(c) // the other side sees it too
		}()
	}
}

func measure(name, addr string) error {
	trips, err := roundTrips(addr+portEcho, span)
	if err != nil {
		return err
	}
	gbit, err := stream(addr + portSink)
	if err != nil {
		return err
	}
	rate, err := connections(addr + portConnect)
	if err != nil {
		return err
	}
	fmt.Printf("%s\t%.1f\t%.1f\t%.2f\t%.0f\n", name, us(trips[len(trips)/2]), us(trips[len(trips)*99/100]), gbit, rate)
	return nil
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func onlyTrips(name, addr string) error {
	trips, err := roundTrips(addr+portEcho, span/2)
	if err != nil {
		return err
	}
	fmt.Printf("%s\t%.2f\t%.1f\n", name, us(trips[len(trips)/2]), us(trips[len(trips)*99/100]))
	return nil
}

func roundTrips(addr string, span time.Duration) ([]time.Duration, error) {
	c, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	buf := make([]byte, message)
	var out []time.Duration
	for begin := time.Now(); time.Since(begin) < span; {
		sent := time.Now()
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		out = append(out, time.Since(sent))
	}
	slices.Sort(out)
	return out, nil
}

// stream is what arrived, in Gbit/s.
func stream(addr string) (float64, error) {
	c, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 128<<10)
	begin := time.Now()
	for time.Since(begin) < span {
		if _, err := c.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	var n int64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		return 0, err
	}
	return float64(n) * 8 / 1e9 / time.Since(begin).Seconds(), nil
}

// connections is how many are made, used and ended in a second.
func connections(addr string) (float64, error) {
	var mu sync.Mutex
	var n int
	var failed error
	var wg sync.WaitGroup
	begin := time.Now()
	for range workers {
		wg.Go(func() {
			for time.Since(begin) < span {
				err := once(addr)
				mu.Lock()
				n, failed = n+1, errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(begin).Seconds(), failed
}

func once(addr string) error {
	c, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	b := []byte{0}
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	return c.(*net.TCPConn).SetLinger(0) // a reset: no socket is left waiting
}

func table(in io.Reader, out io.Writer) error {
	columns := [...]struct{ title, format string }{ // a line of `trips` has the first two
		{"round trip p50 µs", "%.1f"}, {"p99 µs", "%.0f"}, {"TCP stream Gbit/s", "%.1f"}, {"new connections/s", "%.0f"},
	}
	var order []string
	values, width := map[string][][]float64{}, 0
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		words := strings.Split(lines.Text(), "\t")
		if len(words) < 2 || len(words) > len(columns)+1 || width > 0 && len(words) != width+1 {
			return fmt.Errorf("line %q: want a name and at most %d numbers, as many in each line", lines.Text(), len(columns))
		}
		width = len(words) - 1
		if _, ok := values[words[0]]; !ok {
			order = append(order, words[0])
			values[words[0]] = make([][]float64, width)
		}
		for i, w := range words[1:] {
			f, err := strconv.ParseFloat(w, 64)
			if err != nil {
				return fmt.Errorf("line %q: %w", lines.Text(), err)
			}
			values[words[0]][i] = append(values[words[0]][i], f)
		}
	}
	fmt.Fprint(out, "| way | rounds |")
	for _, c := range columns[:width] {
		fmt.Fprintf(out, " %s |", c.title)
	}
	fmt.Fprintf(out, "\n|---|---|%s\n", strings.Repeat("---|", width))
	for _, name := range order {
		v := values[name]
		fmt.Fprintf(out, "| %s | %d |", name, len(v[0]))
		for i, c := range columns[:width] {
			slices.Sort(v[i])
			fmt.Fprintf(out, " "+c.format+" ["+c.format+"–"+c.format+"] |", v[i][len(v[i])/2], v[i][0], v[i][len(v[i])-1])
		}
		fmt.Fprintln(out)
	}
	return lines.Err()
}
