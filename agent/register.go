package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"syscall"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/atomicfile"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/resource"
)

// clusterType is what a host without Kubernetes adds to ClusterInformation.
const clusterType = "bgp"

// register puts this host and the cluster's first objects into the datastore
// and leaves the files that other programs of the host read.
func (a *Agent) register(ctx context.Context) error {
	log := a.opts.Log
	if _, err := a.objects.EnsureInitialized(ctx, a.opts.Version, clusterType); err != nil {
		return fmt.Errorf("initialise datastore: %w", err)
	}
	if err := a.ensureFelixConfiguration(ctx); err != nil {
		return err
	}
	if err := a.checkConflicts(ctx); err != nil {
		return err
	}
	node, err := a.putNode(ctx)
	if err != nil {
		return fmt.Errorf("register node %s: %w", a.opts.Node, err)
	}
	if node.Spec.BGP == nil || node.Spec.BGP.ASNumber == nil {
		log.Info("No AS number configured on node resource, using global value")
	}
	if err := a.ensurePools(ctx); err != nil {
		return err
	}
	log.Info("Using node name: " + a.opts.Node)
	if a.opts.NodenameFile == "-" {
		return nil
	}
	return writeFile(a.opts.NodenameFile, a.opts.Node)
}

// ensureFelixConfiguration creates the default one of a new cluster. In it
// containers may reach their own host, as they may every other and as Kubernetes'
// network wants it; Calico's installers set the same. A cluster that has one has
// been set up by a person.
func (a *Agent) ensureFelixConfiguration(ctx context.Context) error {
	cfg := &api.FelixConfiguration{}
	cfg.Kind, cfg.APIVersion, cfg.Name = "FelixConfiguration", api.GroupVersion, "default"
	accept := "Accept"
	cfg.Spec.DefaultEndpointToHostAction = &accept
	cfg.Default()
	if err := datastore.For[api.FelixConfiguration](a.store).Create(ctx, cfg); err != nil && !errors.Is(err, datastore.ErrExists) {
		return fmt.Errorf("create FelixConfiguration default: %w", err)
	}
	return nil
}

// checkConflicts refuses an address that another node already has: two hosts
// with one address would take turns in every neighbour's ARP table.
func (a *Agent) checkConflicts(ctx context.Context) error {
	if a.opts.SkipConflictCheck {
		return nil
	}
	nodes, _, _, err := datastore.For[api.Node](a.store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	own := a.node.addresses()
	for _, n := range nodes {
		if n.Name == a.opts.Node || n.Spec.BGP == nil {
			continue
		}
		for _, text := range []string{n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address} {
			p, err := netip.ParsePrefix(text)
			for _, c := range own {
				if err == nil && p.Addr() == c.Prefix.Addr() {
					return refuse(ErrBusy, "address %s of interface %s belongs to node %s in the datastore; give this host another with --ip, or delete that node", p.Addr(), c.Interface, n.Name)
				}
			}
		}
	}
	return nil
}

// putNode creates or updates this host's Node. Fields that the agent does not
// know of stay as they are.
func (a *Agent) putNode(ctx context.Context) (*api.Node, error) {
	nodes := datastore.For[api.Node](a.store)
	for range 10 {
		n, err := nodes.Modify(ctx, "", a.opts.Node, a.fillNode)
		if !errors.Is(err, datastore.ErrNotFound) {
			return n, err
		}
		n = &api.Node{}
		n.Kind, n.APIVersion, n.Name = "Node", api.GroupVersion, a.opts.Node
		if err := a.fillNode(n); err != nil {
			return nil, err
		}
		n.Default()
		if err := n.Validate(); err != nil {
			return nil, err
		}
		if err = nodes.Create(ctx, n); !errors.Is(err, datastore.ErrExists) {
			return n, err
		}
	}
	return nil, fmt.Errorf("node is created and deleted by somebody all the time: %w", datastore.ErrConflict)
}

func (a *Agent) fillNode(n *api.Node) error {
	before := n.Spec.Addresses
	if n.Spec.BGP == nil {
		n.Spec.BGP = &api.NodeBGPSpec{}
	}
	v4, v6 := a.node.addresses()[0], a.node.addresses()[1]
	n.Spec.BGP.IPv4Address, n.Spec.BGP.IPv6Address = text(v4.Prefix), text(v6.Prefix)
	if a.opts.ASNumber != 0 {
		asn := api.ASNumber(a.opts.ASNumber)
		n.Spec.BGP.ASNumber = &asn
	}
	var addrs []api.NodeAddress
	for _, old := range before {
		if old.Type != "CalicoNodeIP" {
			addrs = append(addrs, old)
		}
	}
	for _, c := range a.node.addresses() {
		if c.Prefix.IsValid() {
			addrs = append(addrs, api.NodeAddress{Address: c.Prefix.String(), Type: "CalicoNodeIP"})
		}
	}
	n.Spec.Addresses = addrs
	for k, v := range a.opts.Labels {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[k] = v
	}
	a.node.setLabels(n.Labels)
	return nil
}

func text(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// ensurePools creates the default pools of a new cluster. A cluster that has
// any pool has been set up by a person, who is not corrected.
func (a *Agent) ensurePools(ctx context.Context) error {
	if a.opts.NoDefaultPools {
		return nil
	}
	pools, _, bad, err := datastore.For[api.IPPool](a.store).List(ctx, "")
	if err != nil {
		return fmt.Errorf("list pools: %w", err)
	}
	if len(pools)+len(bad) > 0 {
		return nil
	}
	p4, p6 := a.opts.Pool4, a.opts.Pool6
	if p4.CIDR == "" {
		p4.CIDR = "192.168.0.0/16"
	}
	if p6.CIDR == "" {
		if p6.CIDR, err = randomULA(); err != nil {
			return err
		}
	}
	for name, o := range map[string]PoolOptions{"default-ipv4-ippool": p4, "default-ipv6-ippool": p6} {
		if err := a.createPool(ctx, name, o); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) createPool(ctx context.Context, name string, o PoolOptions) error {
	if o.CIDR == "none" {
		return nil
	}
	p := &api.IPPool{Spec: api.IPPoolSpec{
		CIDR: o.CIDR, BlockSize: o.BlockSize, IPIPMode: o.IPIP, VXLANMode: o.VXLAN,
		NATOutgoing: o.NATOutgoing, NodeSelector: o.NodeSelector, DisableBGPExport: o.DisableBGPExport,
	}}
	p.Kind, p.APIVersion, p.Name = "IPPool", api.GroupVersion, name
	err := a.objects.Create(ctx, p)
	if errors.Is(err, resource.ErrExists) {
		return nil // another host was first
	}
	if err != nil {
		return fmt.Errorf("create default pool %s: %w", name, err)
	}
	a.opts.Log.Info("created default pool", "name", name, "cidr", o.CIDR, "natOutgoing", o.NATOutgoing, "ipip", p.Spec.IPIPMode, "vxlan", p.Spec.VXLANMode)
	return nil
}

// randomULA is a /48 of fd00::/8 with a random global ID (RFC 4193 §3.2).
func randomULA() (string, error) {
	b := [16]byte{0xfd}
	if _, err := rand.Read(b[1:6]); err != nil {
		return "", fmt.Errorf("draw a unique local prefix: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 48).String(), nil
}

// checkBGPPort asks for the port before anything is written, so that a host
// with another BGP daemon on it stays untouched.
func (a *Agent) checkBGPPort(ctx context.Context) error {
	if !a.opts.BGP {
		return nil
	}
	port := 179
	configs := datastore.For[api.BGPConfiguration](a.store)
	for _, name := range []string{"default", "node." + a.opts.Node} {
		c, err := configs.Get(ctx, "", name)
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return fmt.Errorf("read BGP configuration: %w", err)
		}
		if err == nil && c.Spec.ListenPort > 0 {
			port = c.Spec.ListenPort
		}
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return refuse(ErrBusy, "TCP port %d is taken, another BGP daemon runs here; stop it, set listenPort in BGPConfiguration node.%s, or use --backend=none", port, a.opts.Node)
	}
	if err != nil {
		return fmt.Errorf("listen for BGP on port %d: %w", port, err)
	}
	return l.Close()
}

// keepAddress follows the host's addresses: when the one in use changes, the
// Node says so within the interval and every peer follows.
func (a *Agent) keepAddress(ctx context.Context) error {
	return every(ctx, a.opts.AutodetectInterval, a.pipe.addressKick, func() {
		fresh, err := detectNode(a.opts, a.tables.handle)
		if err != nil {
			a.opts.Log.Warn("the host's address is gone; the Node keeps the last one", "err", err)
			return
		}
		if reflect.DeepEqual(fresh.addresses(), a.node.addresses()) {
			return
		}
		a.node.adopt(fresh)
		if lost, ok := a.store.(interface{ Reconnect() }); ok {
			lost.Reconnect() // from the address that is no more
		}
		if _, err := a.putNode(ctx); err != nil {
			a.opts.Log.Error("the host's address has changed but the Node could not be updated", "err", err)
		}
	})
}

func writeFile(path, text string) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = atomicfile.Write(path, []byte(text), 0o644)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
