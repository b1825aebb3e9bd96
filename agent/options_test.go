package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/api"
)

func TestFromEnv(t *testing.T) {
	environ := map[string]string{
		"NODENAME": "Rack1-Host7", "HOSTNAME": "other", "WAIT_FOR_DATASTORE": "true", "IP": "10.0.0.1/24", "IP6": "none",
		"AS": "1.10", "CALICO_IPV4POOL_CIDR": "10.244.0.0/16", "CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_BLOCK_SIZE": "24",
		"CALICO_IPV6POOL_NAT_OUTGOING": "true", "FELIX_INTERFACEPREFIX": "cali,tap", "AUTODETECT_POLL_INTERVAL": "5", "CALICO_NETWORKING_BACKEND": "none",
	}
	o, err := FromEnv(func(n string) string { return environ[n] })
	if err != nil {
		t.Fatal(err)
	}
	if o.Node != "rack1-host7" || !o.Wait || o.IP != "10.0.0.1/24" || o.IP6 != "none" || o.ASNumber != 65546 || o.BGP ||
		o.InterfacePrefix != "cali" || o.AutodetectInterval != 5*time.Second {
		t.Errorf("options %+v", o)
	}
	want4 := PoolOptions{CIDR: "10.244.0.0/16", BlockSize: 24, IPIP: "Always", VXLAN: "Never", NATOutgoing: true, NodeSelector: "all()"}
	want6 := PoolOptions{IPIP: "Never", VXLAN: "Never", NATOutgoing: true, NodeSelector: "all()"}
	if o.Pool4 != want4 || o.Pool6 != want6 {
		t.Errorf("pools %+v %+v", o.Pool4, o.Pool6)
	}
}

func TestFelixFromEnv(t *testing.T) {
	read := func(environ map[string]string) (*api.FelixConfigurationSpec, error) {
		o, err := FromEnv(func(n string) string { return environ[n] })
		return o.Felix, err
	}
	if s, err := read(nil); s != nil || err != nil {
		t.Errorf("without variables: %+v, %v", s, err)
	}
	s, err := read(map[string]string{
		"FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT", "FELIX_FAILSAFEINBOUNDHOSTPORTS": "none",
		"FELIX_FAILSAFEOUTBOUNDHOSTPORTS": "22,UDP:53,tcp:10.0.0.0/8:80,tcp:[fd00::/8]:443",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []api.ProtoPort{{Protocol: "tcp", Port: 22}, {Protocol: "udp", Port: 53}, {Protocol: "tcp", Port: 80, Net: "10.0.0.0/8"}, {Protocol: "tcp", Port: 443, Net: "fd00::/8"}}
	if *s.DefaultEndpointToHostAction != "Accept" || s.FailsafeInboundHostPorts == nil || len(s.FailsafeInboundHostPorts) != 0 || !slices.Equal(s.FailsafeOutboundHostPorts, want) {
		t.Errorf("%+v", s)
	}
	for name, value := range map[string]string{
		"FELIX_DEFAULTENDPOINTTOHOSTACTION": "Maybe", "FELIX_FAILSAFEINBOUNDHOSTPORTS": "tcp:22,tcp:ssh", "FELIX_FAILSAFEOUTBOUNDHOSTPORTS": "icmp:1",
	} {
		if _, err := read(map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), name+` is "`+value+`"`) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestFromEnvReportsEveryBadValue(t *testing.T) {
	environ := map[string]string{"AS": "0", "WAIT_FOR_DATASTORE": "perhaps", "CALICO_IPV4POOL_BLOCK_SIZE": "big", "AUTODETECT_POLL_INTERVAL": "soon"}
	_, err := FromEnv(func(n string) string { return environ[n] })
	if !errors.Is(err, ErrBadOption) {
		t.Fatalf("error %v", err)
	}
	for name, value := range environ {
		if !strings.Contains(err.Error(), name+` is "`+value+`"`) {
			t.Errorf("error %q does not name %s and %q", err, name, value)
		}
	}
}

func TestParseASN(t *testing.T) {
	for text, want := range map[string]uint32{"64512": 64512, "1.0": 65536, "65535.65535": 4294967295, "4294967295": 4294967295} {
		if got, err := ParseASN(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "0.0", "-1", "x", "65536.1", "4294967296"} {
		if got, err := ParseASN(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"IP":     {Node: "n", IP: "fd00::1"},
		"IP6":    {Node: "n", IP6: "10.0.0.1"},
		"prefix": {Node: "n", InterfacePrefix: "calico"},
	} {
		if err := o.resolve(); !errors.Is(err, ErrBadOption) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := Options{Node: "n"}
	if err := o.resolve(); err != nil || o.RunDir != "/run/maneki" || o.EmbeddedDir != "/var/lib/maneki/etcd" {
		t.Errorf("%v, %+v", err, o)
	}
}

func TestLockAdmitsOne(t *testing.T) {
	dir := t.TempDir()
	release, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "another agent runs on this host (process ") {
		t.Errorf("second lock: %v", err)
	}
	release()
	again, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
