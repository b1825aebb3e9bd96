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
	scheme := "http"
	if h, _ := l.host(host); l.runsEmbedded(l.cfg.Topology.Hosts[0].Name) && h.Env["ETCD_CERT_FILE"] != "" {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, l.hostPlan(host).Address4(), etcdPort)
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
			topo, _ := l.host(h.Name)
			files["/etc/calico/calicoctl.cfg"] = calicoctlConfig(e, topo.Env)
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

// calicoctlConfig names the datastore, and the host's certificate for it if its
// environment does: the file comes before the environment.
func calicoctlConfig(endpoints string, env map[string]string) string {
	text := `apiVersion: projectcalico.org/v3
kind: CalicoAPIConfig
metadata:
spec:
  datastoreType: "etcdv3"
  etcdEndpoints: "` + endpoints + `"
`
	for _, f := range []struct{ field, variable string }{{"etcdKeyFile", "ETCD_KEY_FILE"}, {"etcdCertFile", "ETCD_CERT_FILE"}, {"etcdCACertFile", "ETCD_CA_CERT_FILE"}} {
		if v := env[f.variable]; v != "" {
			text += fmt.Sprintf("  %s: %q\n", f.field, v)
		}
	}
	return text
}
