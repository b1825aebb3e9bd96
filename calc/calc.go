// Package calc is the pure core of the agent: what the datastore, the BGP
// speaker and the kernel say goes in, the whole desired state of this host
// comes out. It owns no goroutine, clock, socket or logger; Core.Apply is
// called by one goroutine and returns complete maps, so that a lost or repeated
// call is harmless.
//
// Tables of node scale (blocks, pools, nodes, local endpoints) are computed
// anew at every call; there is one file per output table.
package calc

import (
	"fmt"
	"net/netip"
	"sort"
	"strconv"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/autodetect"
	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// Options fix what does not change while an agent runs.
type Options struct {
	Node            string                      // this host's Node name
	InterfacePrefix string                      // of workload interfaces; "cali" unless configured
	Felix           *api.FelixConfigurationSpec // what the agent was started with, before every FelixConfiguration
	// LocalAddr is an address that this host has for its workloads, without an interface that has it; invalid: none.
	LocalAddr netip.Addr
	// Remote: the calculation is about another host, whose interfaces are not known. It serves explanations, never a
	// kernel.
	Remote bool
}

// Batch is a set of changes that are applied together. A nil Links or Learnt
// means unchanged.
type Batch struct {
	Events []datastore.Event
	Local  []LocalChange
	Links  []autodetect.Interface
	MTU    int // of the underlay in bytes; 0 means unchanged
	Learnt map[netip.Prefix]bgp.Path
	// Underlay are the routes of others on this host; nil means unchanged.
	Underlay []desired.Underlay
	// Paths is what was measured about the ways to other hosts; nil means unchanged.
	Paths map[desired.PathKey]desired.PathFact
	// Assigned are this host's own addresses by tunnel device, before they stand on its Node; nil means unchanged.
	Assigned map[string]netip.Addr
	// Settled says that the other hosts have had the time to follow the changes of pools before this batch.
	Settled bool
	// Refused is what the kernel would not take of the last state's packet filter. With TryAgain whatever it has refused
	// before is wanted again.
	Refused  []Refusal
	TryAgain bool
}

// LocalChange is a workload endpoint of this host that the agent itself has
// just written or removed. It takes effect before the datastore's watch brings
// the same news, which saves an ADD the round trip.
type LocalChange struct {
	Key      desired.EndpointKey
	Endpoint *api.WorkloadEndpoint // nil: removed
}

// State is everything this host should be.
type State struct {
	Routes     desired.Routes
	Sysctls    desired.Sysctls
	Endpoints  desired.Endpoints
	Tunnels    desired.Tunnels
	Reach      map[string]int // by tunnel device: other hosts that it leads to
	Neighbours desired.Neighbours
	FDB        desired.FDB
	NFT        desired.NFT
	AutoHost   AutoHost
	Policy     *policy.State  // what is enforced on the endpoints; never changed after it was made
	Filter     *render.Result // of Policy; never changed after it was made
	Use        TunnelUse
	Settling   int            // changes of pools' encapsulation that other hosts may not have followed: see Batch.Settled
	Paths      []desired.Path // to other hosts, worth measuring
	MTUPattern string         // which interfaces count for the underlay's MTU; empty: the usual ones
	MTU        int            // of new workloads in bytes; 0 while the underlay's is not known
	BGP        bgp.Config
	Secrets    map[netip.Addr]Secret // passwords of BGP.Peers, to be filled in
	Reflection Reflection
	NodeKnown  bool              // this host's Node object exists
	Labels     map[string]string // its labels
	Locked     bool              // the datastore is locked for a migration: nothing may be programmed
	Problems   []string          // what could not be used and why, sorted, one line each
}

// Core folds the inputs. It is not safe for concurrent use.
type Core struct {
	opts       Options
	nodes      map[string]*api.Node
	pools      map[string]*api.IPPool
	settling   map[string]bool // pools whose encapsulation changed, until Batch.Settled
	changes    int             // since then
	assigned   map[string]netip.Addr
	bgpConfig  map[string]*api.BGPConfiguration
	bgpPeers   map[string]*api.BGPPeer
	bgpFilters map[string]*api.BGPFilter
	control    map[string]*api.KubeControllersConfiguration
	info       map[string]*api.ClusterInformation
	felix      map[string]*api.FelixConfiguration
	affine     map[netip.Prefix]api.AffinityState // this host's
	remote     map[netip.Prefix]map[string]bool   // confirmed affinities of other nodes
	blocks     map[netip.Prefix]blockView
	endpoints  map[desired.EndpointKey]*api.WorkloadEndpoint // this host's
	floors     map[desired.EndpointKey]uint64                // watch events up to this revision are old news
	trusted    map[desired.EndpointKey]bool                  // written by this agent: holds its addresses
	corrupt    map[datastore.Key]string
	links      []autodetect.Interface
	mtu        int
	facts      map[desired.PathKey]desired.PathFact
	learnt     map[netip.Prefix]bgp.Path
	underlay   []desired.Underlay
	policies   *policies
	enforced   packetFilter
}

// New returns a core without inputs.
func New(opts Options) *Core {
	return &Core{
		opts:       opts,
		nodes:      map[string]*api.Node{},
		pools:      map[string]*api.IPPool{},
		settling:   map[string]bool{},
		bgpConfig:  map[string]*api.BGPConfiguration{},
		bgpPeers:   map[string]*api.BGPPeer{},
		bgpFilters: map[string]*api.BGPFilter{},
		control:    map[string]*api.KubeControllersConfiguration{},
		info:       map[string]*api.ClusterInformation{},
		felix:      map[string]*api.FelixConfiguration{},
		affine:     map[netip.Prefix]api.AffinityState{},
		remote:     map[netip.Prefix]map[string]bool{},
		blocks:     map[netip.Prefix]blockView{},
		endpoints:  map[desired.EndpointKey]*api.WorkloadEndpoint{},
		floors:     map[desired.EndpointKey]uint64{},
		trusted:    map[desired.EndpointKey]bool{},
		corrupt:    map[datastore.Key]string{},
		policies:   newPolicies(opts.Node),
	}
}

// Queries lists what the agent has to follow in the datastore for this core.
func Queries() []datastore.Query {
	queries := []datastore.Query{
		{Kind: "Node"},
		{Kind: "IPPool"},
		{Kind: "BGPConfiguration"},
		{Kind: "BGPPeer"},
		{Kind: "BGPFilter"},
		{Kind: "KubeControllersConfiguration"},
		{Kind: "ClusterInformation"},
		{Kind: "FelixConfiguration"},
		{Kind: "WorkloadEndpoint"},
		{Kind: datastore.KindIPAMBlock},
		{Kind: datastore.KindBlockAffinity},
		{Kind: "Tier"},
		{Kind: "Profile"},
		{Kind: "HostEndpoint"},
		{Kind: "NetworkSet"},
		{Kind: "GlobalNetworkSet"},
	}
	for _, kind := range policyKinds() {
		queries = append(queries, datastore.Query{Kind: kind})
	}
	return queries
}

// Apply folds a batch into the inputs and computes the desired state.
func (c *Core) Apply(b Batch) State {
	if b.Settled {
		clear(c.settling)
		c.changes = 0
	}
	for _, e := range b.Events {
		c.event(e)
	}
	for _, l := range b.Local {
		c.local(l)
	}
	if b.Links != nil {
		c.links = b.Links
	}
	if b.Assigned != nil {
		c.assigned = b.Assigned
	}
	if b.MTU != 0 {
		c.mtu = b.MTU
	}
	if b.Underlay != nil {
		c.underlay = b.Underlay
	}
	if b.Paths != nil {
		c.facts = b.Paths
	}
	if b.Learnt != nil {
		c.learnt = b.Learnt
	}
	c.refuse(b.Refused)
	c.policies.tryAgain = b.TryAgain
	return c.compute()
}

func (c *Core) compute() State {
	p := &problems{}
	for _, text := range c.corrupt {
		p.add("%s", text)
	}
	eps := c.localEndpoints(p)
	blocks := c.ownBlocks()
	t := c.tunnels(p)
	s := State{
		Endpoints:  eps,
		Sysctls:    sysctls(eps, c.nodes[c.opts.Node]),
		Tunnels:    t.devices,
		Reach:      t.reach(),
		Neighbours: t.neighbours,
		FDB:        t.fdb,
		AutoHost:   c.autoHost(p),
		Policy:     c.policies.compute(c.ends(eps, p), c.policyOptions(t, p), p),
		Use:        t.use,
		Paths:      c.paths(t),
		MTUPattern: c.mtuPattern(),
		MTU:        t.podMTU,
		NodeKnown:  c.nodes[c.opts.Node] != nil,
		Locked:     c.locked(),
	}
	s.NFT, s.Filter = c.nft(eps, t, p), c.enforced.of(s.Policy, c.opts.Remote)
	s.NFT.Merge(s.Filter.NFT)
	if self := c.nodes[c.opts.Node]; self != nil {
		s.Labels = self.Labels
	}
	s.Reflection = c.reflection(p)
	v := c.services(p)
	s.Routes = c.routes(eps, blocks, t, v, c.speaker(&s, blocks, v, p), p)
	s.Use.lend(t)
	s.Settling = c.changes
	c.reflectors(&s)
	s.Problems = p.sorted()
	return s
}

func (c *Core) event(e datastore.Event) {
	k := e.Entry.Key
	delete(c.corrupt, k)
	var err error
	switch k.Kind {
	case "Node":
		err = fold(c.nodes, e)
	case "IPPool":
		err = c.poolEvent(e)
	case "BGPConfiguration":
		err = fold(c.bgpConfig, e)
	case "BGPPeer":
		err = fold(c.bgpPeers, e)
	case "BGPFilter":
		err = fold(c.bgpFilters, e)
	case "KubeControllersConfiguration":
		err = fold(c.control, e)
	case "FelixConfiguration":
		err = fold(c.felix, e)
	case "ClusterInformation":
		err = fold(c.info, e)
	case "WorkloadEndpoint":
		err = c.endpointEvent(e)
	case datastore.KindIPAMBlock:
		err = c.blockEvent(e)
	case datastore.KindBlockAffinity:
		err = c.affinityEvent(e)
	default:
		err = c.policies.event(e)
	}
	if err != nil {
		c.corrupt[k] = fmt.Sprintf("%s cannot be used and is skipped: %v", k, err)
	}
}

// fold keeps one kind's map. An object that cannot be decoded is dropped: what
// it said before may be what somebody just corrected.
func fold[T any, P datastore.Ptr[T]](m map[string]P, e datastore.Event) error {
	name := e.Entry.Key.Name
	if e.Type == datastore.EventDelete {
		delete(m, name)
		return nil
	}
	obj, err := datastore.For[T, P](nil).Decode(e.Entry)
	if err != nil {
		delete(m, name)
		return err
	}
	m[name] = obj
	return nil
}

// revision reads a revision as a number; etcd's and Kubernetes' are. Zero means
// that nothing is known of its order.
func revision(r datastore.Revision) uint64 {
	n, err := strconv.ParseUint(string(r), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

type problems struct{ list []string }

func (p *problems) add(format string, args ...any) {
	p.list = append(p.list, fmt.Sprintf(format, args...))
}

func (p *problems) sorted() []string {
	sort.Strings(p.list)
	return p.list
}

// locked reports the lock of `datastore migrate lock` (spec/calico.md §1.3).
func (c *Core) locked() bool {
	info := c.info["default"]
	return info != nil && info.Spec.DatastoreReady != nil && !*info.Spec.DatastoreReady
}
