package ipip

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"

	"github.com/manekinet/maneki/desired"
)

//go:embed bpf/ipip.o
var object []byte

// Direction is one of the two programs. Both work on packets that an interface receives.
type Direction int

const (
	// Encap packs what tunl0's other end receives, which is what the stack sends by tunl0.
	Encap Direction = iota
	// Decap unpacks what the underlay receives.
	Decap
)

// names of the programs in the object and, by the same names, in the kernel.
func (d Direction) name() string { return [...]string{"maneki_encap", "maneki_decap"}[d] }

// String is the program's name.
func (d Direction) String() string { return d.name() }

// Reasons are why packets were not carried, in the order of enum reason in bpf/ipip.c. The last two are no losses.
func Reasons() []string {
	return []string{"no-route", "unknown-host", "too-big", "fragment", "malformed", "congestion", "relayed-error", "followed-route"}
}

// Config is what the programs need to know.
type Config struct {
	Local  netip.Addr // IPv4: source of outer packets and destination of those that are taken
	Tunnel int        // index of tunl0
	Wire   int        // index of its other end
	MAC    [6]byte    // of tunl0
	TTL    uint8      // of outer packets
}

// config is struct config of bpf/ipip.c.
type config struct {
	Local  [4]byte
	Tunnel uint32
	Wire   uint32
	MAC    [6]byte
	TTL    uint8
	_      uint8
}

// Programs are both programs with their maps. It is not safe for concurrent use.
type Programs struct {
	hook     hook
	programs [2]*ebpf.Program
	ids      [2]ebpf.ProgramID
	config   *ebpf.Map
	hosts    *ebpf.Map
	reasons  *ebpf.Map
}

// Options of Load.
type Options struct {
	Handle *netlink.Handle // of the network namespace that the caller is in
	Clsact bool            // use clsact although the kernel has tcx
}

// Load brings the programs into the kernel, unconfigured and attached to nothing.
func Load(o Options) (*Programs, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // before Linux 5.11 maps count as locked memory
		return nil, fmt.Errorf("load IPIP programs: lift the limit of locked memory: %w", err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read the IPIP programs' object: %w", err)
	}
	var loaded struct {
		Encap   *ebpf.Program `ebpf:"maneki_encap"`
		Decap   *ebpf.Program `ebpf:"maneki_decap"`
		Config  *ebpf.Map     `ebpf:"maneki_config"`
		Hosts   *ebpf.Map     `ebpf:"maneki_hosts"`
		Reasons *ebpf.Map     `ebpf:"maneki_reasons"`
	}
	if err := spec.LoadAndAssign(&loaded, nil); err != nil {
		return nil, fmt.Errorf("load IPIP programs: %w", err)
	}
	p := &Programs{
		hook: chooseHook(o), programs: [2]*ebpf.Program{loaded.Encap, loaded.Decap},
		config: loaded.Config, hosts: loaded.Hosts, reasons: loaded.Reasons,
	}
	for d, prog := range p.programs {
		info, err := prog.Info()
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("look at program %s: %w", Direction(d), err)
		}
		id, ok := info.ID()
		if !ok {
			p.Close()
			return nil, fmt.Errorf("look at program %s: the kernel gives programs no number (it needs Linux 4.13)", Direction(d))
		}
		p.ids[d] = id
	}
	if _, ok := p.hook.(tcx); ok {
		p.hook = tcx{own: p.ids}
	}
	return p, nil
}

// Close gives up this process's hold. What is attached stays and goes on working.
func (p *Programs) Close() {
	for _, prog := range p.programs {
		_ = prog.Close()
	}
	for _, m := range []*ebpf.Map{p.config, p.hosts, p.reasons} {
		_ = m.Close()
	}
}

// Hook says what the programs are attached to: "tcx" or "clsact".
func (p *Programs) Hook() string { return p.hook.name() }

// Configure replaces the configuration in one step.
func (p *Programs) Configure(c Config) error {
	if !c.Local.Is4() {
		return fmt.Errorf("configure IPIP programs: local address %s: must be IPv4", c.Local)
	}
	value := config{Local: c.Local.As4(), Tunnel: uint32(c.Tunnel), Wire: uint32(c.Wire), MAC: c.MAC, TTL: c.TTL}
	if err := p.config.Put(uint32(0), value); err != nil {
		return fmt.Errorf("configure IPIP programs: %w", err)
	}
	return nil
}

// Configured is the configuration as it is in the kernel.
func (p *Programs) Configured() (Config, error) {
	var value config
	if err := p.config.Lookup(uint32(0), &value); err != nil {
		return Config{}, fmt.Errorf("read the IPIP programs' configuration: %w", err)
	}
	c := Config{Tunnel: int(value.Tunnel), Wire: int(value.Wire), MAC: value.MAC, TTL: value.TTL}
	if value.Local != [4]byte{} {
		c.Local = netip.AddrFrom4(value.Local)
	}
	return c, nil
}

// prefix is struct prefix of bpf/ipip.c, the key of the kernel's prefix tries.
type prefix struct {
	Bits uint32
	Addr [4]byte
}

// Hosts reads the hosts that the programs take packets from and send packets to.
func (p *Programs) Hosts() (desired.NetSet, error) {
	var found []netip.Prefix
	err := p.eachHost(func(k prefix) { found = append(found, netip.PrefixFrom(netip.AddrFrom4(k.Addr), int(k.Bits))) })
	if err != nil {
		return desired.NetSet{}, fmt.Errorf("list the IPIP programs' hosts: %w", err)
	}
	return desired.NewNetSet(found...), nil
}

// eachHost reads in batches, one system call each, where the kernel can (tries: Linux 5.13).
func (p *Programs) eachHost(f func(prefix)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]prefix, 1024), make([]uint32, 1024)
	for range int(p.hosts.MaxEntries()) {
		n, err := p.hosts.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			break
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for _, k := range keys[:n] {
			f(k)
		}
		if err != nil {
			return nil
		}
	}
	var k prefix
	var v uint32
	it := p.hosts.Iterate()
	for it.Next(&k, &v) {
		f(k)
	}
	return it.Err()
}

// SetHosts adds what is missing, then removes what is too much.
func (p *Programs) SetHosts(want desired.NetSet) error {
	have := map[prefix]bool{}
	if err := p.eachHost(func(k prefix) { have[k] = true }); err != nil {
		return fmt.Errorf("list the IPIP programs' hosts: %w", err)
	}
	for _, net := range want.Prefixes() {
		if !net.Addr().Is4() {
			return fmt.Errorf("IPIP host %s: must be IPv4", net)
		}
		k := prefix{Bits: uint32(net.Bits()), Addr: net.Addr().As4()}
		if have[k] {
			delete(have, k)
			continue
		}
		if err := p.hosts.Put(k, uint32(1)); err != nil {
			return fmt.Errorf("add IPIP host %s: %w", net, err)
		}
	}
	for k := range have {
		if err := p.hosts.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove IPIP host %s/%d: %w", netip.AddrFrom4(k.Addr), k.Bits, err)
		}
	}
	return nil
}

// Counts are packets by reason since the programs were loaded.
func (p *Programs) Counts() (map[string]uint64, error) {
	out := map[string]uint64{}
	for i, name := range Reasons() {
		var perCPU []uint64
		if err := p.reasons.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read the IPIP programs' counter %s: %w", name, err)
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
	return out, nil
}

// Attach puts a program onto an interface, in one step in place of an earlier one of ours.
func (p *Programs) Attach(d Direction, ifindex int) error {
	if err := p.hook.attach(ifindex, d, p.programs[d], p.ids[d]); err != nil {
		return fmt.Errorf("attach %s to interface %d by %s: %w", d, ifindex, p.hook.name(), err)
	}
	return nil
}

// Attached reports whether this process's program is on an interface, and alone of its kind.
func (p *Programs) Attached(d Direction, ifindex int) (bool, error) {
	ids, err := p.hook.ours(ifindex, d)
	if err != nil {
		return false, fmt.Errorf("list programs of interface %d: %w", ifindex, err)
	}
	return len(ids) == 1 && ids[0] == p.ids[d], nil
}

// Detach takes every program of ours of this direction off an interface, whoever loaded it.
func Detach(o Options, d Direction, ifindex int) error {
	if err := chooseHook(o).detach(ifindex, d); err != nil {
		return fmt.Errorf("detach %s from interface %d: %w", d, ifindex, err)
	}
	return nil
}
