package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// peer changes one rule of a plain packet filter by its own command.
type peer struct {
	name  string
	what  string // it is among: "rules"
	among []int
	load  func(others int) error
	open  func() error // lets the probe through
	close func() error
	clear func() error
}

// peersOf are the kernel's own commands: what a change costs without any agent, the
// start of the process included.
func peersOf(t topology) []peer {
	nft := func(text string) error { return t.host.input(text, "nft", "-f", "-") }
	iptables := func(args ...string) error {
		return t.host.run("iptables-legacy", append(args, "-p", "udp", "--dport", fmt.Sprint(probePort), "-j", "ACCEPT")...)
	}
	return []peer{
		{
			name: "nft, one rule", what: "rules", among: []int{0, 100, 1000},
			load: func(n int) error { return nft(linearWithOne(n)) },
			open: func() error {
				return nft(fmt.Sprintf("flush chain ip bench one\nadd rule ip bench one udp dport %d accept\n", probePort))
			},
			close: func() error { return nft("flush chain ip bench one\n") },
			clear: func() error { return nft("delete table ip bench\n") },
		},
		{
			name: "nft, one element", what: "members of a set", among: []int{100_000},
			load: func(n int) error {
				return errors.Join(nft(plainSet(n)), nft("delete element ip bench members { 10.0.0.1 }\n"))
			},
			open:  func() error { return nft("add element ip bench members { 10.0.0.1 }\n") },
			close: func() error { return nft("delete element ip bench members { 10.0.0.1 }\n") },
			clear: func() error { return nft("delete table ip bench\n") },
		},
		{
			name: "iptables-legacy, one rule", what: "rules", among: []int{0, 100, 1000},
			load: func(n int) error { return t.host.input(legacyClosed(n), "iptables-legacy-restore") },
			open: func() error { return iptables("-I", "FORWARD", "1") }, close: func() error { return iptables("-D", "FORWARD") },
			clear: func() error {
				return t.host.input("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", "iptables-legacy-restore")
			},
		},
	}
}

// linearWithOne is n rules that do not match, a chain that may let the probe
// through before them, and a drop.
func linearWithOne(n int) string {
	var b strings.Builder
	b.WriteString("table ip bench {\nchain one {\n}\nchain forward {\ntype filter hook forward priority 0; policy accept;\njump one\n")
	writeOthers(&b, nftOther, n)
	b.WriteString("drop\n}\n}\n")
	return b.String()
}

// legacyClosed is n rules that do not match, and a drop.
func legacyClosed(n int) string {
	var b strings.Builder
	b.WriteString("*filter\n:FORWARD ACCEPT [0:0]\n")
	writeOthers(&b, legacyOther, n)
	b.WriteString("-A FORWARD -j DROP\nCOMMIT\n")
	return b.String()
}

// peers measures the same change with the kernel's own commands.
func peers(t topology, probe *probe, n int) error {
	fmt.Println("| peer | among | p50 ms | p99 ms |")
	fmt.Println("|---|---|---|---|")
	for _, p := range peersOf(t) {
		for _, others := range p.among {
			if err := p.measure(probe, others, n); err != nil {
				return fmt.Errorf("%s among %d: %w", p.name, others, err)
			}
		}
	}
	fmt.Println()
	return nil
}

func (p peer) measure(probe *probe, others, n int) error {
	if err := errors.Join(p.load(others), probe.until(false)); err != nil {
		return err
	}
	var times []time.Duration
	for i := range n {
		change := p.open
		if i%2 == 1 {
			change = p.close
		}
		begin := time.Now()
		if err := change(); err != nil {
			return err
		}
		at, err := probe.when(i%2 == 0)
		if err != nil {
			return err
		}
		times = append(times, at.Sub(begin))
	}
	fmt.Printf("| %s | %d %s | %.2f | %.2f |\n", p.name, others, p.what, ms(percentile(times, 0.5)), ms(percentile(times, 0.99)))
	return p.clear()
}
