package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/manekinet/maneki/config"
)

func TestEtcdURLs(t *testing.T) {
	own := netip.MustParseAddr("10.0.0.2")
	for _, c := range []struct {
		name           string
		o              Options
		clients, peers []string
	}{
		{"alone", Options{}, nil, nil},
		{"for others", Options{EtcdListen: []string{"http://10.0.0.1:2379"}}, []string{"http://10.0.0.1:2379"}, []string{"http://10.0.0.1:2380"}},
		{"for all", Options{EtcdListen: []string{"http://0.0.0.0:2379"}}, []string{"http://0.0.0.0:2379"}, nil},
		{"joining", Options{Join: []string{"http://10.0.0.1:2379"}}, []string{"http://10.0.0.2:2379"}, []string{"http://10.0.0.2:2380"}},
		{
			"joining elsewhere",
			Options{Join: []string{"http://10.0.0.1:2379"}, EtcdListen: []string{"http://10.9.0.2:1234"}, EtcdPeers: []string{"http://10.9.0.2:1235"}},
			[]string{"http://10.9.0.2:1234"},
			[]string{"http://10.9.0.2:1235"},
		},
		{"joining by IPv6", Options{Join: []string{"http://[fd00::1]:2379"}, EtcdListen: []string{"http://[fd00::2]:2379"}}, []string{"http://[fd00::2]:2379"}, []string{"http://[fd00::2]:2380"}},
		{"with a certificate", Options{Join: []string{"https://10.0.0.1:2379"}, Datastore: config.Config{EtcdCertFile: "c", EtcdKeyFile: "k", EtcdCACertFile: "ca"}}, []string{"https://" + own.String() + ":2379"}, []string{"https://" + own.String() + ":2380"}},
	} {
		clients, peers := c.o.etcdURLs(own)
		if !slices.Equal(clients, c.clients) || !slices.Equal(peers, c.peers) {
			t.Errorf("%s: %v %v", c.name, clients, peers)
		}
	}
}

func TestEtcdOptionsRefused(t *testing.T) {
	named := config.Config{Type: config.EtcdV3, Source: "/etc/calico/calicoctl.cfg", EtcdEndpoints: []string{"http://10.0.0.9:2379"}}
	files := config.Config{EtcdCertFile: "c", EtcdKeyFile: "k", EtcdCACertFile: "ca"}
	for _, c := range []struct {
		o    Options
		says string
	}{
		{Options{EtcdListen: []string{"https://10.0.0.1:2379"}}, `--etcd-listen is "https://10.0.0.1:2379"; allowed: http://ADDRESS:PORT with an IP address of this host; https needs ETCD_CERT_FILE, ETCD_KEY_FILE and ETCD_CA_CERT_FILE`},
		{Options{EtcdListen: []string{"http://10.0.0.1:2379"}, Datastore: files}, `--etcd-listen is "http://10.0.0.1:2379"; allowed: https://ADDRESS:PORT with an IP address of this host; ETCD_CERT_FILE names a certificate`},
		{Options{EtcdListen: []string{"https://10.0.0.1:2379"}, Datastore: config.Config{EtcdCertFile: "c", EtcdCACertFile: "ca"}}, `ETCD_KEY_FILE is empty: a host that keeps the datastore with TLS needs`},
		{Options{Join: []string{"10.0.0.1:2379"}}, `--join is "10.0.0.1:2379"; allowed: http://ADDRESS:PORT with the IP address of a host that keeps the datastore`},
		{Options{Join: []string{"http://h1:2379"}}, `--join is "http://h1:2379"; allowed:`},
		{Options{EtcdPeers: []string{"https://10.0.0.1:2380"}}, `--etcd-peer is "https://10.0.0.1:2380"; allowed: http://ADDRESS:PORT with an IP address of this host`},
		{Options{EtcdListen: []string{"http://10.0.0.1"}}, `--etcd-listen is "http://10.0.0.1"; allowed:`},
		{Options{Join: []string{"http://10.0.0.1:2379"}, Datastore: named}, "--join is for hosts that keep the datastore themselves, but /etc/calico/calicoctl.cfg names one (etcdv3 at http://10.0.0.9:2379"},
	} {
		if err := c.o.checkEtcd(); !errors.Is(err, ErrBadOption) || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.says)
		}
	}
}

func TestEtcdOptionsFromEnvironment(t *testing.T) {
	o, err := FromEnv(func(name string) string {
		return map[string]string{"MANEKI_JOIN": "http://10.0.0.1:2379, http://10.0.0.2:2379", "MANEKI_ETCD_LISTEN": "http://10.0.0.3:2379", "MANEKI_ETCD_PEER": "http://10.0.0.3:2380"}[name]
	})
	if err != nil || len(o.Join) != 2 || o.Join[1] != "http://10.0.0.2:2379" || len(o.EtcdListen) != 1 || len(o.EtcdPeers) != 1 {
		t.Errorf("%v %v %v, %v", o.Join, o.EtcdListen, o.EtcdPeers, err)
	}
}
