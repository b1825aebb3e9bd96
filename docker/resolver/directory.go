// Package resolver is a small name server for the containers of one host: it knows the containers of every host by name,
// which Docker's own name service does not, and passes on everything else to the host's name servers.
//
// A container is found as NAME.NETWORK, where NETWORK is the network's name in the cluster, or what its own host's Docker
// calls it; and as NAME by the containers of the same network. Names are those of Docker: the container's own, its
// aliases and the head of its ID. What is known comes from the WorkloadEndpoints.
//
// It is no open resolver: only endpoints of this host are answered.
package resolver

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/endpoint"
)

// Directory is what is known of containers and their names. It is safe for concurrent use.
type Directory struct {
	node string

	mu      sync.RWMutex
	entries map[datastore.Key]entry
	names   map[string][]datastore.Key // "name.network", lower case
	owners  map[netip.Addr]datastore.Key
}

// entry is one endpoint.
type entry struct {
	names    []string
	networks []string // names of its network, that in the cluster first
	addrs    []netip.Addr
	local    bool
}

// NewDirectory is empty; node is this host's.
func NewDirectory(node string) *Directory {
	return &Directory{node: node, entries: map[datastore.Key]entry{}, names: map[string][]datastore.Key{}, owners: map[netip.Addr]datastore.Key{}}
}

// Apply folds in what the datastore says. Other things than Docker's endpoints do not matter.
func (d *Directory) Apply(events []datastore.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range events {
		k := e.Entry.Key
		if k.Kind != "WorkloadEndpoint" || k.Namespace != endpoint.NamespaceLibnetwork {
			continue
		}
		d.remove(k)
		var w api.WorkloadEndpoint
		if e.Type == datastore.EventPut && json.Unmarshal(e.Entry.Value, &w) == nil {
			d.add(k, d.entry(&w))
		}
	}
}

func (d *Directory) entry(w *api.WorkloadEndpoint) entry {
	e := entry{local: w.Spec.Node == d.node}
	for _, n := range strings.Split(w.Annotations[endpoint.AnnotationDockerNames], ",") {
		if n != "" {
			e.names = append(e.names, strings.ToLower(n))
		}
	}
	for _, n := range append(slices.Clone(w.Spec.Profiles), w.Annotations[endpoint.AnnotationDockerNetworkName]) {
		if n = strings.ToLower(n); n != "" && !slices.Contains(e.networks, n) {
			e.networks = append(e.networks, n)
		}
	}
	for _, text := range w.Spec.IPNetworks {
		if p, err := netip.ParsePrefix(text); err == nil && p.IsSingleIP() {
			e.addrs = append(e.addrs, p.Addr())
		}
	}
	return e
}

func (d *Directory) add(k datastore.Key, e entry) {
	d.entries[k] = e
	for _, network := range e.networks {
		for _, name := range e.names {
			d.names[name+"."+network] = append(d.names[name+"."+network], k)
		}
	}
	for _, a := range e.addrs {
		d.owners[a] = k
	}
}

func (d *Directory) remove(k datastore.Key) {
	e, ok := d.entries[k]
	if !ok {
		return
	}
	delete(d.entries, k)
	for _, network := range e.networks {
		for _, name := range e.names {
			full := name + "." + network
			d.names[full] = slices.DeleteFunc(d.names[full], func(o datastore.Key) bool { return o == k })
			if len(d.names[full]) == 0 {
				delete(d.names, full)
			}
		}
	}
	for _, a := range e.addrs {
		if d.owners[a] == k {
			delete(d.owners, a)
		}
	}
}

// Serves reports that an address is that of an endpoint of this host.
func (d *Directory) Serves(a netip.Addr) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	k, ok := d.owners[a]
	return ok && d.entries[k].local
}

// Lookup returns the addresses of a name, in lower case and without the final dot, in no order, as the container with
// the address who sees it. ours is false for a name that others may know: it has several words, and does not end in the
// name of the asker's network.
func (d *Directory) Lookup(name string, who netip.Addr) (addrs []netip.Addr, ours bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	asker := d.entries[d.owners[who]]
	full := []string{name}
	if !strings.Contains(name, ".") {
		ours = true // a name of one word is nobody else's
	}
	for _, n := range asker.networks { // a container's name may have dots
		full = append(full, name+"."+n)
	}
	for _, f := range full {
		for _, k := range d.names[f] {
			for _, a := range d.entries[k].addrs {
				if !slices.Contains(addrs, a) {
					addrs = append(addrs, a)
				}
			}
		}
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs, ours || len(addrs) > 0 || slices.ContainsFunc(asker.networks, func(n string) bool { return strings.HasSuffix(name, "."+n) })
}

// Name is the name of the container with the address; empty when it is none of ours.
func (d *Directory) Name(a netip.Addr) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	k, ok := d.owners[a]
	e := d.entries[k]
	if !ok || len(e.names) == 0 || len(e.networks) == 0 {
		return ""
	}
	return e.names[0] + "." + e.networks[0]
}
