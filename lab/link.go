package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Cable is one link of a host or router: the device inside, and the port of the
// switch it is plugged into.
type Cable struct {
	Member, Device, Subnet string
	// Cut: the switch port is down, as if the cable were pulled: the member's
	// device loses its carrier.
	Cut bool
	// Loss is the share of frames that the switch port drops, in percent, in each
	// direction.
	Loss float64
}

// CutCable pulls or plugs the cable of a host or router; device is empty for
// the first one.
func (l *Lab) CutCable(member, device string, cut bool) error {
	port, err := l.port(member, device)
	if err != nil {
		return err
	}
	h, err := l.netlinkAt(port.Subnet)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(member)
	if err != nil {
		return fmt.Errorf("find port of %s on the switch of %s: %w", member, port.Subnet, err)
	}
	set := h.LinkSetUp
	if cut {
		set = h.LinkSetDown
	}
	if err := set(link); err != nil {
		return fmt.Errorf("cut or restore %s of %s: %w", port.Device, member, err)
	}
	return nil
}

// port finds the port of a member by its device.
func (l *Lab) port(member, device string) (Port, error) {
	if os.Geteuid() != 0 {
		return Port{}, fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	nodes := slices.Concat(l.plan.Hosts, l.plan.Routers)
	i := slices.IndexFunc(nodes, func(n NodePlan) bool { return n.Name == member })
	if i < 0 {
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		return Port{}, classified{ErrNotFound, fmt.Sprintf("lab %s has no host or router %q, it has: %s", l.cfg.Name, member, strings.Join(names, ", "))}
	}
	var devices []string
	for _, p := range nodes[i].Ports {
		if device == "" || p.Device == device {
			return p, nil
		}
		devices = append(devices, p.Device)
	}
	return Port{}, classified{ErrNotFound, fmt.Sprintf("%s has no cable at %q, it has: %s", member, device, strings.Join(devices, ", "))}
}

// Cables lists the links of all hosts and routers as they are.
func (l *Lab) Cables() ([]Cable, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: run it with sudo", ErrNotRoot)
	}
	var out []Cable
	for _, n := range slices.Concat(l.plan.Hosts, l.plan.Routers) {
		for _, p := range n.Ports {
			c := Cable{Member: n.Name, Device: p.Device, Subnet: p.Subnet}
			h, err := l.netlinkAt(p.Subnet)
			if err != nil {
				return nil, err
			}
			link, err := h.LinkByName(n.Name)
			h.Close()
			if err != nil {
				return nil, fmt.Errorf("find port of %s on the switch of %s: %w", n.Name, p.Subnet, err)
			}
			c.Cut = link.Attrs().RawFlags&unix.IFF_UP == 0
			if c.Loss, err = l.lossOf(p.Subnet, n.Name); err != nil {
				return nil, err
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// lossTable is the nftables table of a switch that drops frames: one base chain
// for each port and direction, on the port's own hook, so that nothing is
// delayed and nothing is queued.
const lossTable = "maneki_lab_loss"

// lossScale is how finely a share is drawn: 0.01 %.
const lossScale = 10000

// SetLoss has the switch port of a member drop this share of frames, in
// percent, in both directions, each frame by itself; 0 ends it. device is empty
// for the first cable.
func (l *Lab) SetLoss(member, device string, percent float64) error {
	if percent < 0 || percent > 100 {
		return classified{ErrInput, fmt.Sprintf("loss %g is not allowed, want 0 to 100 (percent)", percent)}
	}
	port, err := l.port(member, device)
	if err != nil {
		return err
	}
	return l.onSwitch(port.Subnet, func(c *nftables.Conn) error {
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: lossTable})
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
		if err != nil {
			return fmt.Errorf("list chains of the switch of %s: %w", port.Subnet, err)
		}
		for _, name := range lossChains(member) {
			for _, old := range chains {
				if old.Table.Name == lossTable && old.Name == name {
					c.DelChain(old)
				}
			}
		}
		if share := uint32(percent * lossScale / 100); share > 0 {
			addLoss(c, table, member, share)
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("set loss of %s: %w", member, err)
		}
		return nil
	})
}

// lossChains are the chains of a port: frames from the member, and to it.
func lossChains(member string) []string { return []string{member + "_from", member + "_to"} }

func addLoss(c *nftables.Conn, table *nftables.Table, port string, share uint32) {
	hooks := []*nftables.ChainHook{nftables.ChainHookIngress, nftables.ChainHookEgress}
	for i, name := range lossChains(port) {
		chain := c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hooks[i], Priority: nftables.ChainPriorityFilter, Device: port,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Numgen{Register: 1, Modulus: lossScale, Type: unix.NFT_NG_RANDOM},
			// The kernel compares bytes: the number must be in network order.
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, share)},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
}

// lossOf reads the share that a port drops back from the kernel.
func (l *Lab) lossOf(subnet, port string) (percent float64, err error) {
	err = l.onSwitch(subnet, func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
		if err != nil {
			return fmt.Errorf("list chains of the switch of %s: %w", subnet, err)
		}
		for _, chain := range chains {
			if chain.Table.Name != lossTable || chain.Name != lossChains(port)[0] {
				continue
			}
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return fmt.Errorf("list rules of the switch of %s: %w", subnet, err)
			}
			percent = shareIn(rules)
		}
		return nil
	})
	return percent, err
}

func shareIn(rules []*nftables.Rule) float64 {
	for _, r := range rules {
		for _, e := range r.Exprs {
			if cmp, ok := e.(*expr.Cmp); ok && len(cmp.Data) == 4 {
				return float64(binary.BigEndian.Uint32(cmp.Data)) * 100 / lossScale
			}
		}
	}
	return 0
}

// onSwitch opens nftables in the namespace of a subnet's switch.
func (l *Lab) onSwitch(subnet string, f func(*nftables.Conn) error) error {
	p, err := l.pause(subnet)
	if err != nil {
		return err
	}
	fd, err := netns.GetFromPid(p.PID)
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", subnet, err)
	}
	defer fd.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(fd)))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", subnet, err)
	}
	return f(c)
}
