package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
)

// etcdPort is the client port of every etcd of the lab.
const etcdPort = 2379

// etcdPeerPort is where the members of an external etcd talk to each other.
const etcdPeerPort = 2380

// Endpoints is the datastore that a host's agent is pointed to; empty for a host
// whose agent runs an embedded etcd.
func (l *Lab) Endpoints(host string) string {
	t := l.cfg.Topology
	first := t.Hosts[0].Name
	if t.Etcd.Mode != EtcdExternal {
		if host == first || slices.Contains(t.Etcd.Hosts, host) {
			return ""
		}
		return l.etcdURL(first)
	}
	if slices.Contains(t.Etcd.Hosts, host) {
		return l.etcdURL(host)
	}
	return l.etcdURL(t.Etcd.Hosts[0])
}

func (l *Lab) etcdURL(host string) string {
	return fmt.Sprintf("http://%s:%d", l.hostPlan(host).Address4(), etcdPort)
}

// writeHostFiles gives every host /etc/hosts with the names of the lab, its
// host name, and calicoctl's configuration file. They exist only in the
// host's own mount namespace.
func (l *Lab) writeHostFiles(context.Context) error {
	hosts := l.hostsFile()
	for _, h := range l.plan.Hosts {
		s, err := l.enter(h.Name)
		if err != nil {
			return err
		}
		files := map[string]string{"/etc/hosts": hosts, "/etc/hostname": h.Name + "\n"}
		if e := l.Endpoints(h.Name); e != "" {
			files["/etc/calico/calicoctl.cfg"] = calicoctlConfig(e)
		}
		for path, text := range files {
			err := s.do(func() error { return os.WriteFile(path, []byte(text), 0o644) })
			if err != nil {
				return fmt.Errorf("write file of host %s: %w", h.Name, err)
			}
		}
	}
	return nil
}

func (l *Lab) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, nodes := range [][]NodePlan{l.plan.Hosts, l.plan.Routers} {
		for _, n := range nodes {
			for _, p := range n.Ports {
				for _, a := range p.Addresses {
					fmt.Fprintf(&b, "%s %s\n", a.Addr(), n.Name)
				}
			}
		}
	}
	return b.String()
}

func calicoctlConfig(endpoints string) string {
	return `apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: "etcdv3"
  etcdEndpoints: "` + endpoints + `"
`
}
