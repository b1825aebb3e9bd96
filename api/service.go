package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// AnnotationServices on BGPConfiguration default names the addresses of services
// and the hosts that serve them, where no Kubernetes says so: a list of Service,
// as YAML or JSON.
const AnnotationServices = "maneki.net/services"

// Limits of AnnotationServices.
const (
	maxServices         = 1000
	maxServiceAddresses = 64
	maxServiceHosts     = 1000
)

// Service is one entry of AnnotationServices.
type Service struct {
	Name      string   `json:"name,omitempty"` // for messages
	Addresses []string `json:"addresses"`
	// Hosts are the nodes that serve it, by name, or HostSelector by their labels.
	Hosts        []string `json:"hosts,omitempty"`
	HostSelector string   `json:"hostSelector,omitempty"`
}

// Services reads AnnotationServices. A nil b has none. The error is a
// *FieldErrors that names every entry that is wrong; none is then returned.
func (b *BGPConfiguration) Services() ([]Service, error) {
	if b == nil {
		return nil, nil
	}
	c := &checker{kind: "BGPConfiguration"}
	list := c.services(b)
	if err := c.Err(); err != nil {
		return nil, err
	}
	return list, nil
}

// ServiceCIDRs are the ranges of services' addresses of all three kinds.
func (s *BGPConfigurationSpec) ServiceCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, list := range [][]CIDRBlock{s.ServiceClusterIPs, s.ServiceExternalIPs, s.ServiceLoadBalancerIPs} {
		for _, block := range list {
			if p, err := netip.ParsePrefix(block.CIDR); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out
}

// services reads and checks the annotation.
func (c *checker) services(b *BGPConfiguration) []Service {
	text, ok := b.Annotations[AnnotationServices]
	if !ok {
		return nil
	}
	if b.Name != "default" {
		c.annotation(AnnotationServices, text, "only on BGPConfiguration default")
		return nil
	}
	var list []Service
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		c.annotation(AnnotationServices, text, "must be a list of {name, addresses, hosts or hostSelector}: "+strings.Join(strings.Fields(err.Error()), " "))
		return nil
	}
	if len(list) > maxServices {
		c.annotation(AnnotationServices, fmt.Sprintf("%d entries", len(list)), fmt.Sprintf("must be at most %d", maxServices))
		return nil
	}
	ranges, taken := b.Spec.ServiceCIDRs(), map[netip.Addr]bool{}
	for i, s := range list {
		path := index("Metadata.Annotations["+AnnotationServices+"]", i)
		c.serviceAddresses(path, s, ranges, taken)
		c.serviceHosts(path, s)
	}
	return list
}

func (c *checker) serviceAddresses(path string, s Service, ranges []netip.Prefix, taken map[netip.Addr]bool) {
	if len(s.Addresses) == 0 || len(s.Addresses) > maxServiceAddresses {
		c.add(path+".addresses", fmt.Sprintf("%d entries", len(s.Addresses)), fmt.Sprintf("give 1 to %d addresses", maxServiceAddresses))
		return
	}
	for i, text := range s.Addresses {
		at := index(path+".addresses", i)
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6():
			c.add(at, clip(text), "must be an IP address")
		case taken[a]:
			c.add(at, text, "given twice")
		case !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }):
			c.add(at, text, "must lie in a range of serviceClusterIPs, serviceExternalIPs or serviceLoadBalancerIPs")
		}
		taken[a] = true
	}
}

func (c *checker) serviceHosts(path string, s Service) {
	switch {
	case (len(s.Hosts) == 0) == (s.HostSelector == ""):
		c.add(path+".hosts", strings.Join(s.Hosts, " "), "give either hosts or hostSelector")
	case len(s.Hosts) > maxServiceHosts:
		c.add(path+".hosts", fmt.Sprintf("%d entries", len(s.Hosts)), fmt.Sprintf("must be at most %d", maxServiceHosts))
	}
	for i, h := range s.Hosts {
		c.name(index(path+".hosts", i), h)
	}
	c.selector(path+".hostSelector", s.HostSelector, false)
}
