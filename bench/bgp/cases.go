package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// swarm is the running process of the clients.
type swarm struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startSwarm(clients, routes int, patience time.Duration) (*swarm, error) {
	spec, err := json.Marshal(swarmSpec{Server: server(), Clients: clients, Routes: routes, Patience: patience})
	if err != nil {
		return nil, err
	}
	s := &swarm{cmd: child(roleSwarm, string(spec))}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	return s, s.cmd.Start()
}

// do gives an order and returns the milliseconds; not ok with what is missing.
func (s *swarm) do(order string) (ms float64, missing string, err error) {
	if _, err := fmt.Fprintln(s.in, order); err != nil {
		return 0, "", fmt.Errorf("the clients are gone: %w", err)
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		return 0, "", fmt.Errorf("the clients are gone: %w", err)
	}
	line = strings.TrimSpace(line)
	if ms, err = strconv.ParseFloat(line, 64); err != nil {
		return 0, line, nil
	}
	return ms, "", nil
}

func (s *swarm) stop() {
	s.in.Close()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // it was killed
}

// plan is what is measured.
type plan struct {
	sizes, blocks []int
	daemons       []string
	flaps         int // of Maneki
	otherFlaps    int
	patience      time.Duration // the longest wait for one picture
}

func (p plan) flapsOf(daemon string) int {
	if daemon == "maneki" {
		return p.flaps
	}
	return p.otherFlaps
}

// reflectors prints the table of reflectors.
func (p plan) reflectors(ctx context.Context) error {
	fmt.Println("| reflector | clients | routes each | cold ms | flaps of one | p50 ms | p99 ms | max ms | restart ms | CPU s, cold | peak MB, cold |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, n := range p.sizes {
		for _, r := range p.blocks {
			for _, name := range p.daemons {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				row, err := p.reflector(name, n, r)
				if err != nil {
					return fmt.Errorf("%s with %d clients: %w", name, n, err)
				}
				fmt.Println(row)
			}
		}
	}
	return nil
}

// reflector measures one daemon with one swarm. What comes after a picture that
// was not complete is not measured.
func (p plan) reflector(name string, clients, routes int) (string, error) {
	dir, err := os.MkdirTemp("", "bench-bgp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	d, err := newDaemon(name, dir, clients)
	if err != nil {
		return "", err
	}
	if err := d.start(); err != nil {
		return "", err
	}
	defer func() { d.kill() }()
	s, err := startSwarm(clients, routes, p.patience)
	if err != nil {
		return "", err
	}
	defer s.stop()
	cold, complete, err := s.cell("cold", p.patience)
	if err != nil {
		return "", err
	}
	used, err := usageOf(d.cmd.Process.Pid)
	if err != nil {
		return "", err
	}
	flaps, restart := []string{"-", "-", "-", "-"}, "-"
	if complete {
		if flaps, _, err = s.flaps(p.flapsOf(name), p.patience); err != nil {
			return "", err
		}
		d.kill()
		if err := d.start(); err != nil {
			return "", err
		}
		if restart, _, err = s.cell("again", p.patience); err != nil {
			return "", err
		}
	}
	cells := append([]string{name, strconv.Itoa(clients), strconv.Itoa(routes), cold}, flaps...)
	cells = append(cells, restart, fmt.Sprintf("%.2f", used.cpu.Seconds()), fmt.Sprintf("%.0f", used.peak))
	return "| " + strings.Join(cells, " | ") + " |", nil
}

// cell is the text of one measurement, and whether it is a time.
func (s *swarm) cell(order string, patience time.Duration) (text string, complete bool, err error) {
	ms, missing, err := s.do(order)
	if missing != "" {
		return fmt.Sprintf("not complete after %s (%s)", patience, missing), false, err
	}
	return fmt.Sprintf("%.0f", ms), true, err
}

// flaps closes the connection of one client after another, n times, and returns
// how often, the median, the 99th percentile and the longest time until everybody
// had everything again. The first that does not complete ends it.
func (s *swarm) flaps(n int, patience time.Duration) (cells []string, complete bool, err error) {
	var times []float64
	for range n {
		ms, missing, err := s.do("flap")
		if err != nil {
			return nil, false, err
		}
		if missing != "" {
			return []string{strconv.Itoa(len(times) + 1), "-", "-", fmt.Sprintf("not complete after %s (%s)", patience, missing)}, false, nil
		}
		times = append(times, ms)
	}
	slices.Sort(times)
	cells = []string{strconv.Itoa(n)}
	for _, i := range []int{n / 2, n * 99 / 100, n - 1} {
		cells = append(cells, fmt.Sprintf("%.0f", times[i]))
	}
	return cells, true, nil
}

// clientsOf measures one client of Maneki's reflector that is a speaker, too, with
// the others simulated.
func (p plan) clientsOf(ctx context.Context) error {
	fmt.Printf("\nOne client of Maneki's reflector, with Maneki's speaker:\n\n")
	fmt.Println("| other clients | routes held | full ms | CPU s | peak MB |")
	fmt.Println("|---|---|---|---|---|")
	for _, n := range p.sizes {
		for _, r := range p.blocks {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			row, err := p.oneClient(n, r)
			if err != nil {
				return fmt.Errorf("client among %d: %w", n, err)
			}
			fmt.Println(row)
		}
	}
	return nil
}

func (p plan) oneClient(others, routes int) (string, error) {
	dir, err := os.MkdirTemp("", "bench-bgp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	d, err := newDaemon("maneki", dir, others+1)
	if err != nil {
		return "", err
	}
	if err := d.start(); err != nil {
		return "", err
	}
	defer d.kill()
	spec, err := json.Marshal(speakerSpec{Addr: clientAddr(others), Server: server().Addr(), Want: others * routes})
	if err != nil {
		return "", err
	}
	client := child(roleSpeaker, string(spec))
	out, err := client.StdoutPipe()
	if err != nil {
		return "", err
	}
	s, err := startSwarm(others, routes, p.patience)
	if err != nil {
		return "", err
	}
	defer s.stop()
	if err := client.Start(); err != nil {
		return "", err
	}
	defer func() { _ = client.Process.Kill(); _ = client.Wait() }()
	if _, missing, err := s.do("cold"); err != nil || missing != "" {
		return "", fmt.Errorf("the others did not complete: %s %w", missing, err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the client did not get its routes: %w", err)
	}
	used, err := usageOf(client.Process.Pid)
	return fmt.Sprintf("| %d | %d | %s | %.2f | %.0f |", others, others*routes, strings.TrimSpace(line), used.cpu.Seconds(), used.peak), err
}

// coldStarts starts a reflector and 50 clients again and again and counts the
// starts in which a client did not get every route.
func (p plan) coldStarts(ctx context.Context, maneki, others int) error {
	const clients, routes = 50, 4
	fmt.Printf("\nCold starts of %d clients x %d routes, all at once; each with %s to complete.\n\n", clients, routes, p.patience)
	fmt.Println("| reflector | starts | with a route missing | p50 ms | max ms |")
	fmt.Println("|---|---|---|---|---|")
	for _, name := range p.daemons {
		n := others
		if name == "maneki" {
			n = maneki
		}
		var times []float64
		misses := 0
		for range n {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ms, missing, err := p.oneStart(name, clients, routes)
			if err != nil {
				return fmt.Errorf("cold start of %s: %w", name, err)
			}
			if missing != "" {
				misses++
				continue
			}
			times = append(times, ms)
		}
		if n == 0 {
			continue
		}
		slices.Sort(times)
		if len(times) == 0 {
			times = []float64{0}
		}
		fmt.Printf("| %s | %d | %d | %.0f | %.0f |\n", name, n, misses, times[len(times)/2], times[len(times)-1])
	}
	return nil
}

func (p plan) oneStart(name string, clients, routes int) (float64, string, error) {
	dir, err := os.MkdirTemp("", "bench-bgp-")
	if err != nil {
		return 0, "", err
	}
	defer os.RemoveAll(dir)
	d, err := newDaemon(name, dir, clients)
	if err != nil {
		return 0, "", err
	}
	if err := d.start(); err != nil {
		return 0, "", err
	}
	defer d.kill()
	s, err := startSwarm(clients, routes, p.patience)
	if err != nil {
		return 0, "", err
	}
	defer s.stop()
	return s.do("cold")
}
