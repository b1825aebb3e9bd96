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
)

// swarm is the running process of the clients.
type swarm struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startSwarm(clients, routes int) (*swarm, error) {
	spec, err := json.Marshal(swarmSpec{Server: server(), Clients: clients, Routes: routes})
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

// reflectors prints the table of reflectors.
func reflectors(ctx context.Context, sizes, blocks []int, names []string, birdMost int) error {
	fmt.Println("| reflector | clients | routes each | cold ms | flap of one ms | restart ms | CPU s, cold | peak MB |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, n := range sizes {
		for _, r := range blocks {
			for _, name := range names {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if name == "bird" && n > birdMost {
					continue
				}
				row, err := reflector(name, n, r)
				if err != nil {
					return fmt.Errorf("%s with %d clients: %w", name, n, err)
				}
				fmt.Println(row)
			}
		}
	}
	return nil
}

func reflector(name string, clients, routes int) (string, error) {
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
	s, err := startSwarm(clients, routes)
	if err != nil {
		return "", err
	}
	defer s.stop()
	cells := []string{name, strconv.Itoa(clients), strconv.Itoa(routes)}
	var used usage
	for _, order := range []string{"cold", "flap", "again"} {
		if len(cells) > 3 && strings.HasPrefix(cells[3], "not") {
			cells = append(cells, "-")
			continue
		}
		if order == "again" {
			d.kill()
			if err := d.start(); err != nil {
				return "", err
			}
		}
		ms, missing, err := s.do(order)
		if err != nil {
			return "", err
		}
		if missing != "" {
			cells = append(cells, fmt.Sprintf("not within %s (%s)", patience, missing))
		} else {
			cells = append(cells, fmt.Sprintf("%.0f", ms))
		}
		if order == "cold" {
			if used, err = usageOf(d.cmd.Process.Pid); err != nil {
				return "", err
			}
		}
	}
	cells = append(cells, fmt.Sprintf("%.2f", used.cpu.Seconds()), fmt.Sprintf("%.0f", used.peak))
	return "| " + strings.Join(cells, " | ") + " |", nil
}

// clientsOf measures one client of Maneki's reflector that is a speaker, too, with
// the others simulated.
func clientsOf(ctx context.Context, sizes, blocks []int) error {
	fmt.Printf("\nOne client of Maneki's reflector, with Maneki's speaker:\n\n")
	fmt.Println("| other clients | routes held | full ms | CPU s | peak MB |")
	fmt.Println("|---|---|---|---|---|")
	for _, n := range sizes {
		for _, r := range blocks {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			row, err := oneClient(n, r)
			if err != nil {
				return fmt.Errorf("client among %d: %w", n, err)
			}
			fmt.Println(row)
		}
	}
	return nil
}

func oneClient(others, routes int) (string, error) {
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
	s, err := startSwarm(others, routes)
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
func coldStarts(ctx context.Context, maneki, others int, names []string) error {
	const clients, routes = 50, 4
	fmt.Printf("\nCold starts of %d clients x %d routes, all at once; each with %s to complete.\n\n", clients, routes, patience)
	fmt.Println("| reflector | starts | with a route missing | p50 ms | max ms |")
	fmt.Println("|---|---|---|---|---|")
	for _, name := range names {
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
			ms, missing, err := oneStart(name, clients, routes)
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

func oneStart(name string, clients, routes int) (float64, string, error) {
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
	s, err := startSwarm(clients, routes)
	if err != nil {
		return 0, "", err
	}
	defer s.stop()
	return s.do("cold")
}
