package calc

import (
	"fmt"
	"maps"
	"net/netip"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/calc/index"
	"github.com/manekinet/maneki/datastore"
)

// What the selectors of rules select, of all hosts: workloads, host endpoints
// and sets of networks.

// maxServiceAccount is the longest name that can be the value of a label.
const maxServiceAccount = 62

// workloadLabels are an endpoint's labels with those that storage adds, should
// whoever stored it have left them out.
func workloadLabels(w *api.WorkloadEndpoint) map[string]string {
	labels := maps.Clone(w.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[api.LabelNamespace], labels[api.LabelOrchestrator] = w.Namespace, w.Spec.Orchestrator
	if sa := w.Spec.ServiceAccountName; sa != "" && len(sa) <= maxServiceAccount {
		labels[labelServiceAccount] = sa
	}
	return labels
}

func workloadItem(w *api.WorkloadEndpoint) index.Item {
	it := index.Item{Labels: workloadLabels(w), Parents: w.Spec.Profiles}
	for _, text := range w.Spec.IPNetworks {
		if p, err := parseNet(text); err == nil && p.IsSingleIP() {
			it.Nets = append(it.Nets, p)
		}
	}
	for _, p := range w.Spec.Ports {
		it.Ports = appendPort(it.Ports, p.Name, p.Protocol, p.Port)
	}
	return it
}

func appendPort(list []index.Port, name string, protocol api.IntOrString, port uint16) []index.Port {
	n, err := protocolNumber(&protocol)
	if err != nil || name == "" {
		return list
	}
	return append(list, index.Port{Name: name, Proto: n, Port: port})
}

func hostItem(h *api.HostEndpoint) index.Item {
	it := index.Item{Labels: h.Labels, Parents: h.Spec.Profiles}
	for _, text := range h.Spec.ExpectedIPs {
		if p, err := parseNet(text); err == nil && p.IsSingleIP() {
			it.Nets = append(it.Nets, p)
		}
	}
	for _, p := range h.Spec.Ports {
		it.Ports = appendPort(it.Ports, p.Name, p.Protocol, p.Port)
	}
	return it
}

// netsItem is a set of networks. One with a namespace has the namespace's labels
// as the endpoints there have them. An error names the first text that is no
// network; the others count nevertheless.
func netsItem(m *api.ObjectMeta, list []string) (index.Item, error) {
	it := index.Item{Labels: m.Labels, Nets: make([]netip.Prefix, 0, len(list))}
	if m.Namespace != "" {
		it.Labels = maps.Clone(m.Labels)
		if it.Labels == nil {
			it.Labels = map[string]string{}
		}
		it.Labels[api.LabelNamespace] = m.Namespace
		it.Parents = []string{"kns." + m.Namespace}
	}
	var bad error
	for i, text := range list {
		p, err := parseNet(text)
		if err != nil {
			if bad == nil {
				bad = fmt.Errorf("nets[%d]: %q is neither a network nor an address; it does not count", i, text)
			}
			continue
		}
		it.Nets = append(it.Nets, p)
	}
	return it, bad
}

// setEvent takes a set of networks into the index.
func (p *policies) setEvent(e datastore.Event) error {
	k := e.Entry.Key
	delete(p.notes, k)
	if e.Type == datastore.EventDelete {
		p.index.Delete(k)
		return nil
	}
	meta, list, err := netsOf(e.Entry)
	if err != nil {
		p.index.Delete(k)
		return err
	}
	it, bad := netsItem(meta, list)
	p.index.Put(k, it)
	if bad != nil {
		p.notes[k] = fmt.Sprintf("%s: %v", k, bad)
	}
	return nil
}

func netsOf(e datastore.Entry) (*api.ObjectMeta, []string, error) {
	if e.Key.Kind == "NetworkSet" {
		s, err := datastore.For[api.NetworkSet](nil).Decode(e)
		if err != nil {
			return nil, nil, err
		}
		return s.Meta(), s.Spec.Nets, nil
	}
	s, err := datastore.For[api.GlobalNetworkSet](nil).Decode(e)
	if err != nil {
		return nil, nil, err
	}
	return s.Meta(), s.Spec.Nets, nil
}

// hostEvent takes a host endpoint of any host into the index, and keeps those of
// this one.
func (p *policies) hostEvent(e datastore.Event) error {
	k := e.Entry.Key
	if e.Type == datastore.EventDelete {
		p.index.Delete(k)
		delete(p.hosts, k.Name)
		return nil
	}
	h, err := datastore.For[api.HostEndpoint](nil).Decode(e.Entry)
	if err != nil {
		p.index.Delete(k)
		delete(p.hosts, k.Name)
		return err
	}
	p.index.Put(k, hostItem(h))
	if h.Spec.Node == p.node {
		p.hosts[k.Name] = h
	} else {
		delete(p.hosts, k.Name)
	}
	return nil
}

// profileEvent keeps profiles, whose labels the endpoints that name them have.
func (p *policies) profileEvent(e datastore.Event) error {
	name := e.Entry.Key.Name
	if name == api.DefaultAllowProfile {
		return nil // it exists without being stored, and stays what it is
	}
	p.touchedProfiles[name] = struct{}{}
	err := fold(p.profiles, e)
	var labels map[string]string
	if obj := p.profiles[name]; obj != nil {
		labels = obj.Spec.LabelsToApply
	}
	p.index.SetParent(name, labels)
	return err
}

func (p *policies) policyEvent(e datastore.Event) {
	k := e.Entry.Key
	if old := p.specs[k]; old != nil {
		p.touched[old.id] = struct{}{}
	}
	delete(p.specs, k)
	if e.Type == datastore.EventDelete {
		return
	}
	if s := policyFrom(e.Entry); s != nil {
		p.specs[k] = s
		p.touched[s.id] = struct{}{}
	}
}

// workload takes a workload endpoint of any host into the index; nil takes it
// out.
func (p *policies) workload(k datastore.Key, w *api.WorkloadEndpoint) {
	if w == nil {
		p.index.Delete(k)
		return
	}
	p.index.Put(k, workloadItem(w))
}
