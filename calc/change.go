package calc

import (
	"net/netip"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
)

// A pool's encapsulation changes while packets flow, and every host hears of it
// in its own time. So none may send with the new one before the other host can
// take it, whatever the order:
//
//   - a host's address on a tunnel device, on its Node, says that the device is
//     there: the agent publishes it after that;
//   - until it is there, packets go the way they went before: by another tunnel
//     that both hosts still have, else plain, as BGP says;
//   - a tunnel that no pool asks for any more stays for a while
//     (tunnelGrace of the agent), and as long as it is lent in that way.
//
// A host that never publishes an address for IPIP can take such packets
// nevertheless: it may be Calico's, or have got no address. After a while the
// agent says that changes have settled, and then they are sent.

// poolEvent folds an IP pool and notes a change of its encapsulation.
func (c *Core) poolEvent(e datastore.Event) error {
	name := e.Entry.Key.Name
	before := c.pools[name]
	err := fold(c.pools, e)
	after := c.pools[name]
	if before == nil || after == nil {
		delete(c.settling, name)
		return err
	}
	was, _ := c.deviceOf(before)
	if is, _ := c.deviceOf(after); is.name != was.name {
		c.settling[name] = true
		c.changes++
	}
	return err
}

// way is how packets for another host travel.
type way struct {
	direct  bool       // plain: the host is on this host's subnet
	through string     // by this tunnel device
	gateway netip.Addr // the other end of it
}

// way decides how packets of a pool with encapsulation travel to a host. The
// zero value leaves it to BGP.
func (c *Core) way(t tunnelState, pool *api.IPPool, host netip.Addr) way {
	d, mode := c.deviceOf(pool)
	other := t.hosts[d.name][host]
	ready := other.addr.IsValid()
	switch {
	case c.sameSubnet(host) && (mode == api.EncapCrossSubnet || !ready):
		return way{direct: true}
	case ready, d.encap == desired.EncapIPIP && !c.settling[pool.Name]:
		return d.to(other)
	}
	for _, standing := range devices() {
		end, known := t.hosts[standing.name][host]
		if known && standing.v4 == d.v4 && end.addr.IsValid() && t.devices[standing.name].Addrs != (desired.AddrSet{}) {
			t.lent[standing.name] = true
			return standing.to(end)
		}
	}
	return way{}
}

// to leads through the device to another host's end of it.
func (d device) to(other peer) way {
	if d.encap == desired.EncapIPIP {
		return way{through: d.name, gateway: other.host} // which needs no more than the host's address
	}
	return way{through: d.name, gateway: other.addr}
}

// lend marks tunnels as used that carry what another one cannot yet.
func (u *TunnelUse) lend(t tunnelState) {
	for _, d := range devices() {
		if t.lent[d.name] {
			d.use(u).Used = true
		}
	}
}
