package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// network is what is remembered of a Docker network on this host.
type network struct {
	ID string `json:"id"`
	// Name is the network's name in the cluster: of -o maneki.network, or of the pool's network, or Docker's own; empty
	// while it is not known.
	Name string `json:"name,omitempty"`
	// Docker is what this host's Docker calls it; empty while it is not known.
	Docker string `json:"docker,omitempty"`
	// Pools are those named by --subnet.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Internal is --internal: there is no way out of the network, and none in.
	Internal bool `json:"internal,omitempty"`
	// MTU is the containers' if -o says one.
	MTU int `json:"mtu,omitempty"`
	// Reserved are the addresses of --aux-address, which have no endpoint.
	Reserved []netip.Addr `json:"reserved,omitempty"`
}

// networks keeps one small file for each network. Files are read when they are needed: there are few, and a file that
// is not there says that this agent has never seen the network.
type networks struct {
	dir string
	mu  sync.Mutex
}

const (
	stateSuffix = ".json"
	tempSuffix  = ".tmp"
	maxNetworks = 65536 // files looked at
	maxState    = 1 << 20
)

func openNetworks(dir string) (*networks, error) {
	dir = filepath.Join(dir, "networks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"+tempSuffix)) // of a process killed in put
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return &networks{dir: dir}, err
}

func (n *networks) path(id string) string { return filepath.Join(n.dir, id+stateSuffix) }

// put writes a network so that a reader sees all of it or nothing, also after a loss of power.
func (n *networks) put(w network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.write(w); err != nil {
		return fmt.Errorf("keep network %s: %w", w.ID, err)
	}
	return nil
}

func (n *networks) write(w network) error {
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	path := n.path(w.ID)
	tmp, err := os.OpenFile(path+tempSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(path+tempSuffix, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+tempSuffix))
	}
	dir, err := os.Open(n.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// get reads a network; ok is false when nothing is known of it.
func (n *networks) get(id string) (w network, ok bool, err error) {
	f, err := os.Open(n.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return network{ID: id}, false, nil
	}
	if err != nil {
		return w, false, fmt.Errorf("read network %s: %w", id, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxState {
		return w, false, fmt.Errorf("read network %s: more than %d bytes", id, maxState)
	}
	if err := json.NewDecoder(f).Decode(&w); err != nil {
		return w, false, fmt.Errorf("read network %s: %w", id, err)
	}
	return w, true, nil
}

// remove forgets a network; it is no error when it is not known.
func (n *networks) remove(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.Remove(n.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget network %s: %w", id, err)
	}
	return nil
}

// reserved are the addresses that networks hold for themselves. A file that cannot be read is an error: what it
// reserves would be taken for free.
func (n *networks) reserved() (map[netip.Addr]bool, error) {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	all := map[netip.Addr]bool{}
	for i, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), stateSuffix)
		if !ok || i >= maxNetworks {
			continue
		}
		w, _, err := n.get(id)
		if err != nil {
			return nil, err
		}
		for _, a := range w.Reserved {
			all[a] = true
		}
	}
	return all, nil
}

// ports knows which endpoint has an address, so that an address that Docker gives back is not left with an endpoint: a
// dockerd that was killed and starts again releases the addresses of the containers it had, and forgets their endpoints
// without a word.
type ports struct {
	mu     sync.Mutex
	byAddr map[netip.Addr]string // nil before load
}

// load reads once what was there before this process.
func (p *ports) load(read func() (map[netip.Addr]string, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byAddr != nil {
		return nil
	}
	all, err := read()
	if err == nil {
		p.byAddr = all
	}
	return err
}

func (p *ports) add(port string, addrs []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addrs {
		p.byAddr[a] = port
	}
}

func (p *ports) remove(port string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.byAddr, func(_ netip.Addr, other string) bool { return other == port })
}

// of is the endpoint that has an address; empty when none has.
func (p *ports) of(addr netip.Addr) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byAddr[addr]
}
