package routes

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkCache knows the interfaces of the namespace. While Watch keeps it up to date it is listed once; otherwise before
// every use. It is guarded by Applier.mu.
type linkCache struct {
	byIndex map[int]linkState
	byName  map[string]int
	listed  bool // complete, not only what was looked up
	live    bool // Watch feeds it
	missed  bool // an index was asked for that is not known
}

type linkState struct {
	name string
	up   bool
}

func newLinkCache() linkCache {
	return linkCache{byIndex: map[int]linkState{}, byName: map[string]int{}}
}

// fresh makes the cache as new as it can be.
func (c *linkCache) fresh(h *netlink.Handle) error {
	if c.live && c.listed && !c.missed {
		return nil
	}
	var err error
	for range maxDumps {
		var links []netlink.Link
		if links, err = h.LinkList(); err == nil {
			c.byIndex, c.byName = make(map[int]linkState, len(links)), make(map[string]int, len(links))
			c.listed, c.missed = true, false
			for _, l := range links {
				c.set(l.Attrs().Index, linkState{l.Attrs().Name, l.Attrs().RawFlags&unix.IFF_UP != 0})
			}
			return nil
		}
		if !interrupted(err) {
			break
		}
	}
	return fmt.Errorf("list interfaces: %w", err)
}

// set takes note of an interface and returns what was known of it; the zero state is "there is none".
func (c *linkCache) set(index int, s linkState) (before linkState) {
	before = c.byIndex[index]
	if before.name != s.name && c.byName[before.name] == index {
		delete(c.byName, before.name)
	}
	if s == (linkState{}) {
		delete(c.byIndex, index)
		return before
	}
	c.byIndex[index], c.byName[s.name] = s, index
	return before
}

// name is the name of an interface, empty when there is none.
func (c *linkCache) name(index int) string {
	s, ok := c.byIndex[index]
	if !ok && index != 0 {
		c.missed = true
	}
	return s.name
}

// hops is the interface names of a route's next hops; nothing for a route that has none.
func (c *linkCache) hops(r netlink.Route) []string {
	if len(r.MultiPath) == 0 {
		if r.LinkIndex == 0 {
			return nil
		}
		return []string{c.name(r.LinkIndex)}
	}
	names := make([]string, len(r.MultiPath))
	for i, nh := range r.MultiPath {
		names[i] = c.name(nh.LinkIndex)
	}
	return names
}

// index finds an interface by name, asking the kernel when the cache does not know or must not be trusted.
func (c *linkCache) index(h *netlink.Handle, name string, ask bool) (int, error) {
	if index, ok := c.byName[name]; ok && c.live && !ask {
		return index, nil
	}
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return 0, fmt.Errorf("interface %s does not exist", name)
	case err != nil:
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	c.set(link.Attrs().Index, linkState{name, link.Attrs().RawFlags&unix.IFF_UP != 0})
	return link.Attrs().Index, nil
}
