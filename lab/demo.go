package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// DemoName is the lab that the demo builds unless told otherwise, so that it
// never meets one that a user keeps.
const DemoName = "demo"

// DemoOptions say how the demo shows itself.
type DemoOptions struct {
	Name, Root, Binary string
	Out                io.Writer
	Color              bool // for a terminal
	Log                *slog.Logger
}

// demo is one run.
type demo struct {
	DemoOptions
	*Lab
	began  time.Time
	proofs []proof
	addr   map[string]netip.Addr // of the containers
}

type proof struct {
	text string
	err  error
}

// Demo builds a network, shows that it works, and removes it. It returns an
// error when anything that it set out to prove did not come true.
func Demo(ctx context.Context, o DemoOptions) error {
	if o.Name == "" {
		o.Name = DemoName
	}
	d := &demo{DemoOptions: o, began: time.Now(), addr: map[string]netip.Addr{}}
	t := DefaultTopology(4)
	t.Hosts[3].Agent = AgentManual // joins later
	d.say("Three hosts on " + t.Subnets[0].CIDR + ", etcd inside the first agent.")
	l, err := Up(ctx, Config{Name: o.Name, Root: o.Root, Binary: o.Binary, Topology: t, Bound: true, Log: o.Log})
	if err != nil {
		return err
	}
	d.Lab = l
	err = d.run(ctx)
	if derr := l.Destroy(context.WithoutCancel(ctx)); derr != nil {
		err = errors.Join(err, derr)
	}
	if err != nil {
		return err
	}
	return d.conclude()
}

func (d *demo) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.showHosts, d.attach, d.showContainer, d.showMesh, d.showRoutes, d.pingAll,
		d.noNAT, d.restartAgent, d.healRoute, d.join, d.showIPAM,
	} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// say prints a heading.
func (d *demo) say(text string) {
	if d.Color {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintf(d.Out, "\n%s\n", text)
}

// prove notes that something came true, or why not.
func (d *demo) prove(text string, err error) { d.proofs = append(d.proofs, proof{text, err}) }

// proveIf notes text as true if ok, else with the evidence.
func (d *demo) proveIf(ok bool, text, evidence string) {
	var err error
	if !ok {
		err = errors.New(strings.Join(strings.Fields(evidence), " "))
	}
	d.prove(text, err)
}

// show runs a command in a member and prints both, as typed and as answered.
func (d *demo) show(ctx context.Context, member string, argv ...string) string {
	where := member
	if _, err := d.host(member); err == nil {
		where = "--host " + member
	}
	fmt.Fprintf(d.Out, "\n$ maneki lab exec %s -- %s\n", where, strings.Join(argv, " "))
	var out bytes.Buffer
	err := d.Exec(ctx, member, Stdio{Out: io.MultiWriter(d.Out, &out), Err: d.Out}, argv...)
	if err != nil {
		fmt.Fprintf(d.Out, "(%s)\n", err)
	}
	return out.String()
}

func (d *demo) showHosts(ctx context.Context) error {
	fmt.Fprintln(d.Out)
	if err := d.Status(ctx).WriteTable(d.Out); err != nil {
		return err
	}
	d.prove("three hosts with a real agent each, ready in "+since(d.began), nil)
	return nil
}

func since(t time.Time) string { return roughly(time.Since(t)) }

func roughly(took time.Duration) string {
	if took < time.Second {
		return took.Round(100 * time.Microsecond).String()
	}
	return took.Round(10 * time.Millisecond).String()
}

// startContainer attaches a container and remembers its address.
func (d *demo) startContainer(ctx context.Context, host, name string) error {
	c := Container{Host: host, Name: name, Labels: map[string]string{"app": "demo"}}
	st, err := d.Run(ctx, ContainerSpec{Container: c})
	if err != nil {
		return err
	}
	if len(st.Addresses) == 0 {
		return fmt.Errorf("attach %s: CNI ADD returned no address", name)
	}
	d.addr[name] = st.Addresses[0]
	fmt.Fprintf(d.Out, "$ maneki lab run %s %s --label app=demo\n%s    (CNI ADD: %s)\n", host, name, st.Addresses[0], roughly(st.Attach))
	return nil
}

func (d *demo) attach(ctx context.Context) error {
	d.say("A container on each host, attached by CNI through the real plugin.")
	fmt.Fprintln(d.Out)
	for i, name := range []string{"c1", "c2", "c3"} {
		if err := d.startContainer(ctx, fmt.Sprintf("h%d", i+1), name); err != nil {
			return err
		}
	}
	d.prove("containers attached through CNI and the plugin binary", nil)
	return nil
}

func (d *demo) showContainer(ctx context.Context) error {
	d.say("What a container has: a /32, the same MAC everywhere, a default route to 169.254.1.1.")
	addr := d.show(ctx, "c1", "maneki", "lab", "addr", "eth0")
	routes := d.show(ctx, "c1", "maneki", "lab", "routes")
	ok := strings.Contains(addr, "inet "+d.addr["c1"].String()+"/32") &&
		strings.Contains(addr, "link/ether ee:ee:ee:ee:ee:ee") &&
		strings.Contains(routes, "default via 169.254.1.1 dev eth0")
	d.proveIf(ok, "a container has its /32, MAC ee:ee:ee:ee:ee:ee, default via 169.254.1.1", addr+routes)
	return nil
}

// showMesh waits until every pair of hosts has its BGP session.
func (d *demo) showMesh(ctx context.Context) error {
	d.say("BGP between the hosts.")
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for wait.Err() == nil {
		out, err := d.Output(wait, "h1", nil, "maneki", "node", "status")
		if err == nil && strings.Count(out, "Established") >= 2 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	out := d.show(ctx, "h1", "maneki", "node", "status")
	d.proveIf(strings.Count(out, "Established") == 2, "node-to-node mesh: both sessions of h1 are Established", out)
	return nil
}

func (d *demo) showRoutes(ctx context.Context) error {
	d.say("The routes of h1: its own block, its container, and the blocks of the others by BGP.")
	took, err := d.waitReachable(ctx, "h1", "h2", "c2")
	if err == nil {
		_, err = d.waitReachable(ctx, "h1", "h3", "c3")
	}
	out := d.show(ctx, "h1", "maneki", "lab", "routes")
	d.prove("h1 learnt the blocks of h2 and h3 by BGP (waited "+roughly(took)+")", err)
	own := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(d.addr["c1"].String()) + ` dev cali\w+ .*scope link`)
	d.proveIf(own.MatchString(out) && strings.Contains(out, "blackhole "),
		"the host has a /32 to its container and a blackhole for its block, no bridge", out)
	return nil
}

// waitReachable waits until the kernel of host forwards to a container by way
// of the host that it is on.
func (d *demo) waitReachable(ctx context.Context, host, via, container string) (time.Duration, error) {
	h, err := d.netlinkAt(host)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	began := time.Now()
	gateway := d.hostPlan(via).Address4()
	for time.Since(began) < 15*time.Second && ctx.Err() == nil {
		if _, ok := routeTo(h, d.addr[container], gateway); ok {
			return time.Since(began), nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, fmt.Errorf("%s has no route to %s via %s after %s", host, d.addr[container], gateway, since(began))
}

// routeTo finds the most specific route of the main table to dst if it goes
// through gateway.
func routeTo(h *netlink.Handle, dst, gateway netip.Addr) (netlink.Route, bool) {
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netlink.Route{}, false
	}
	best, bits := netlink.Route{}, 0
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.Contains(dst.AsSlice()) {
			continue
		}
		if n, _ := r.Dst.Mask.Size(); n > bits {
			best, bits = r, n
		}
	}
	gw, ok := netip.AddrFromSlice(best.Gw)
	return best, ok && gw.Unmap() == gateway
}

func (d *demo) pingAll(ctx context.Context) error {
	d.say("Packets across hosts: two routers on the way, so ttl=62, and nothing is lost.")
	for _, to := range []string{"c2", "c3"} {
		out := d.show(ctx, "c1", "maneki", "lab", "ping", "-c", "3", "-i", "0.1", d.addr[to].String())
		ok := strings.Count(out, "ttl=62") == 3 && strings.Contains(out, " 0% packet loss")
		d.proveIf(ok, "c1 reaches "+to+" on another host: ttl=62, 0% loss", out)
	}
	h1 := d.hostPlan("h1").Address4().String()
	for _, p := range [][2]string{{"c1", h1}, {"h1", d.addr["c1"].String()}} {
		out, err := d.Output(ctx, p[0], nil, "maneki", "lab", "ping", "-q", "-c", "2", "-i", "0.1", p[1])
		d.proveIf(err == nil && strings.Contains(out, " 0% packet loss"), p[0]+" reaches "+p[1], out+fmt.Sprint(err))
	}
	return nil
}

// noNAT asks a container which source address arrived.
func (d *demo) noNAT(ctx context.Context) error {
	d.say("No NAT on the way: c2 says which address it was called from.")
	server, err := d.background(ctx, "c2", "maneki", "lab", "listen", "-p", "8080", "--count", "2")
	if err != nil {
		return err
	}
	defer server.stop()
	if err := server.waitFor(ctx, "listening"); err != nil {
		d.prove("the source address stays", err)
		return nil
	}
	to := d.addr["c2"].String() + ":8080"
	seen := strings.TrimSpace(d.show(ctx, "c1", "maneki", "lab", "connect", to))
	d.proveIf(seen == d.addr["c1"].String(), "c2 sees c1 by its own address "+d.addr["c1"].String(), "seen: "+seen)
	seen = strings.TrimSpace(d.show(ctx, "h3", "maneki", "lab", "connect", to))
	h3 := d.hostPlan("h3").Address4().String()
	d.proveIf(seen == h3, "c2 sees host h3 by its own address "+h3, "seen: "+seen)
	return nil
}

// restartAgent restarts h2's agent while c1 pings a container on h2.
func (d *demo) restartAgent(ctx context.Context) error {
	d.say("Restart the agent of h2 under a running ping to its container, then kill -9 it.")
	for _, way := range []struct {
		word string
		sig  unix.Signal
	}{{"restarted", unix.SIGTERM}, {"killed with SIGKILL and started again", unix.SIGKILL}} {
		line, took, err := d.pingWhile(ctx, func() error {
			if err := d.StopAgent(ctx, "h2", way.sig); err != nil {
				return err
			}
			return d.StartAgent(ctx, "h2")
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			fmt.Fprintf(d.Out, "\nagent of h2 %s (ready after %s): %s\n", way.word, roughly(took), line)
		}
		if err == nil && !strings.Contains(line, " 0% packet loss") {
			err = errors.New(line)
		}
		d.prove("agent of h2 "+way.word+" under a running ping: "+line, err)
	}
	return nil
}

// pingWhile pings c2 from c1 every 10 ms during change and for a little after.
func (d *demo) pingWhile(ctx context.Context, change func() error) (string, time.Duration, error) {
	ping, err := d.background(ctx, "c1", "maneki", "lab", "ping", "-q", "-i", "0.01", d.addr["c2"].String())
	if err != nil {
		return "", 0, err
	}
	defer ping.stop()
	if err := ping.waitFor(ctx, "PING"); err != nil {
		return "", 0, err
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	if err := change(); err != nil {
		return "", 0, err
	}
	took := time.Since(began)
	time.Sleep(500 * time.Millisecond)
	ping.interrupt()
	for line := range strings.Lines(ping.stop()) {
		if strings.Contains(line, "packets transmitted") {
			return strings.TrimSpace(line), took, nil
		}
	}
	return "", took, errors.New("ping printed no summary")
}

// healRoute deletes a learnt route and measures, by the kernel's own
// notifications, how long it stays away.
func (d *demo) healRoute(ctx context.Context) error {
	d.say("Delete the route to h2's block on h1.")
	h, err := d.netlinkAt("h1")
	if err != nil {
		return err
	}
	defer h.Close()
	gateway := d.hostPlan("h2").Address4()
	route, ok := routeTo(h, d.addr["c2"], gateway)
	if !ok {
		d.prove("a deleted route comes back", errors.New("there is no route to delete"))
		return nil
	}
	p, err := d.pause("h1")
	if err != nil {
		return err
	}
	inside, err := netns.GetFromPid(p.PID)
	if err != nil {
		return fmt.Errorf("open namespace of h1: %w", err)
	}
	defer inside.Close()
	events, done := make(chan netlink.RouteUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.RouteSubscribeAt(inside, events, done); err != nil {
		return fmt.Errorf("watch routes of h1: %w", err)
	}
	began := time.Now()
	if err := h.RouteDel(&route); err != nil {
		return fmt.Errorf("delete route %s: %w", route.Dst, err)
	}
	took, err := waitHealed(ctx, events, route, began)
	if err == nil {
		fmt.Fprintf(d.Out, "\n%s via %s is back after %s\n", route.Dst, gateway, roughly(took))
	}
	d.prove("a deleted route is back in "+roughly(took), err)
	return nil
}

// waitHealed waits for the notices that route went and came back.
func waitHealed(ctx context.Context, events <-chan netlink.RouteUpdate, route netlink.Route, began time.Time) (time.Duration, error) {
	limit := time.After(time.Second)
	gone := false
	for {
		select {
		case e := <-events:
			if e.Dst == nil || e.Dst.String() != route.Dst.String() {
				continue
			}
			gone = gone || e.Type == unix.RTM_DELROUTE
			if gone && e.Type == unix.RTM_NEWROUTE {
				return time.Since(began), nil
			}
		case <-limit:
			return time.Since(began), errors.New("it is not back after 1s")
		case <-ctx.Done():
			return time.Since(began), ctx.Err()
		}
	}
}

// join starts the agent of a fourth host.
func (d *demo) join(ctx context.Context) error {
	d.say("A fourth host joins.")
	fmt.Fprintln(d.Out)
	began := time.Now()
	if err := d.StartAgent(ctx, "h4"); err != nil {
		return err
	}
	if err := d.startContainer(ctx, "h4", "c4"); err != nil {
		return err
	}
	_, err := d.waitReachable(ctx, "h1", "h4", "c4")
	if err == nil {
		_, err = d.waitReachable(ctx, "h4", "h1", "c1")
	}
	took := since(began)
	out := d.show(ctx, "c1", "maneki", "lab", "ping", "-c", "2", "-i", "0.1", d.addr["c4"].String())
	if err == nil && !strings.Contains(out, " 0% packet loss") {
		err = errors.New("c1 does not reach c4")
	}
	d.prove("a fourth host joined; its container is reachable "+took+" after its agent was started", err)
	return nil
}

func (d *demo) showIPAM(ctx context.Context) error {
	d.say("Addresses.")
	out := d.show(ctx, "h1", "maneki", "ipam", "show")
	d.proveIf(regexp.MustCompile(`\| +4 \(0%\) +\|`).MatchString(out), "ipam show counts the four addresses in use", out)
	return nil
}

// conclude prints what was proved.
func (d *demo) conclude() error {
	d.say("What this showed:")
	failed := 0
	for _, p := range d.proofs {
		mark, text := "✓", p.text
		if p.err != nil {
			failed++
			mark, text = "✗", p.text+": "+p.err.Error()
		}
		fmt.Fprintf(d.Out, "  %s %s\n", mark, text)
	}
	fmt.Fprintf(d.Out, "\n%d of %d proved in %s; everything was removed.\n", len(d.proofs)-failed, len(d.proofs), since(d.began))
	if failed > 0 {
		return fmt.Errorf("demo: %d of %d proofs failed", failed, len(d.proofs))
	}
	return nil
}

// background is a command that runs while the demo goes on.
type background struct {
	cmd  *exec.Cmd
	out  *watched
	done chan struct{}
}

// background starts a command in a member.
func (d *demo) background(ctx context.Context, member string, argv ...string) (*background, error) {
	b := &background{out: newWatched(), done: make(chan struct{})}
	cmd, err := d.prepare(ctx, member, Stdio{Out: b.out, Err: b.out}, argv)
	if err != nil {
		return nil, err
	}
	b.cmd = cmd
	go func() {
		defer close(b.done)
		_ = cmd.Wait()
	}()
	return b, nil
}

func (b *background) interrupt() { _ = b.cmd.Process.Signal(syscall.SIGINT) }

// stop waits a moment for the command to end by itself, kills it otherwise,
// and returns what it printed.
func (b *background) stop() string {
	select {
	case <-b.done:
	case <-time.After(3 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.done
	}
	return b.out.text()
}

func (b *background) waitFor(ctx context.Context, word string) error {
	for range 1000 {
		if strings.Contains(b.out.text(), word) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.done:
			return fmt.Errorf("%s ended: %s", b.cmd.Args[0], b.out.text())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return fmt.Errorf("no %q after 5s: %s", word, b.out.text())
}
