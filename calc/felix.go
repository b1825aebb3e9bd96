package calc

import (
	"maps"
	"slices"
	"strings"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/selector"
)

// felixSpecs are the settings that count for this host, those that count most
// first (spec/calico.md §5.7): what the agent was started with, the host's own
// FelixConfiguration, those that select its Node, the default one.
func (c *Core) felixSpecs() []*api.FelixConfigurationSpec {
	var out []*api.FelixConfigurationSpec
	if c.opts.Felix != nil {
		out = append(out, c.opts.Felix)
	}
	own := "node." + c.opts.Node
	if f := c.felix[own]; f != nil {
		out = append(out, &f.Spec)
	}
	for _, name := range slices.Sorted(maps.Keys(c.felix)) {
		f := c.felix[name]
		if name != own && name != "default" && !strings.HasPrefix(name, "node.") && c.selectsSelf(f.Spec.NodeSelector) {
			out = append(out, &f.Spec)
		}
	}
	if f := c.felix["default"]; f != nil {
		out = append(out, &f.Spec)
	}
	return out
}

func (c *Core) selectsSelf(text *string) bool {
	self := c.nodes[c.opts.Node]
	if text == nil || self == nil {
		return false
	}
	s, err := selector.Parse(*text)
	return err == nil && s.Match(self.Labels)
}

// felixBool is a switch; off unless somebody sets it.
func (c *Core) felixBool(get func(*api.FelixConfigurationSpec) *bool) bool {
	for _, s := range c.felixSpecs() {
		if v := get(s); v != nil {
			return *v
		}
	}
	return false
}

// felixText is a word.
func (c *Core) felixText(get func(*api.FelixConfigurationSpec) *string, def string) string {
	for _, s := range c.felixSpecs() {
		if v := get(s); v != nil && *v != "" {
			return *v
		}
	}
	return def
}

// felixInt is a number; 0 counts as not set.
func (c *Core) felixInt(get func(*api.FelixConfigurationSpec) *int, def int) int {
	for _, s := range c.felixSpecs() {
		if v := get(s); v != nil && *v != 0 {
			return *v
		}
	}
	return def
}

// felixPorts is a list of ports: nil if nobody sets one. An empty list is one.
func (c *Core) felixPorts(get func(*api.FelixConfigurationSpec) []api.ProtoPort) []api.ProtoPort {
	for _, s := range c.felixSpecs() {
		if v := get(s); v != nil {
			return v
		}
	}
	return nil
}
