package cni

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/manekinet/maneki/cni/wire"
)

func parsed(t *testing.T, command, args, config string) (*call, error) {
	t.Helper()
	return parseCall(wire.Request{Command: command, ContainerID: "c1", IfName: "eth0", Args: args, Config: json.RawMessage(config)})
}

func TestSpecOfConfiguration(t *testing.T) {
	tests := []struct{ name, args, config, want string }{
		{"least", "", `{"name":"n"}`, "v4 default cni [] mtu 0 forward false"},
		{"calico", "", `{"cniVersion":"0.3.1","name":"n","type":"calico","nodename":"x","datastore_type":"etcdv3","mtu":1440,"ipam":{"type":"calico-ipam"}}`, "v4 default cni [] mtu 1440 forward false"},
		{"dual", "", `{"name":"n","ipam":{"assign_ipv6":"true"}}`, "v4 v6 default cni [] mtu 0 forward false"},
		{"six only", "", `{"name":"n","ipam":{"assign_ipv4":false,"assign_ipv6":true}}`, "v6 default cni [] mtu 0 forward false"},
		{"forwarding", "", `{"name":"n","container_settings":{"allow_ip_forwarding":true}}`, "v4 default cni [] mtu 0 forward true"},
		{"pod", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;X=y", `{"name":"n","policy":{"type":"k8s"}}`, "v4 shop web [kns.shop ksa.shop.default] mtu 0 forward false"},
		{"pod without policy", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web", `{"name":"n"}`, "v4 shop web [] mtu 0 forward false"},
		{"half a pod", "K8S_POD_NAMESPACE=;K8S_POD_NAME=", `{"name":"n"}`, "v4 default cni [] mtu 0 forward false"},
		{"fixed", "IP=10.0.0.7/26,fd00::7", `{"name":"n","runtimeConfig":{"ips":["10.0.0.8"]}}`, "v4 10.0.0.7 fd00::7 10.0.0.8 default cni [] mtu 0 forward false"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parsed(t, "ADD", tt.args, tt.config)
			if err != nil {
				t.Fatal(err)
			}
			s, err := c.spec(nil)
			if err != nil {
				t.Fatal(err)
			}
			var words []string
			if s.IPv4 {
				words = append(words, "v4")
			}
			if s.IPv6 {
				words = append(words, "v6")
			}
			for _, a := range s.Addrs {
				words = append(words, a.String())
			}
			id, _ := json.Marshal(s.ID)
			namespace, pod := s.Namespace, s.Pod
			if namespace == "" {
				namespace = "default"
			}
			if pod == "" {
				pod = "cni"
			}
			profiles, _ := json.Marshal(s.Profiles)
			list := strings.NewReplacer("null", "[]", `"`, "", ",", " ").Replace(string(profiles))
			mtu, _ := json.Marshal(s.MTU)
			forward, _ := json.Marshal(s.AllowForwarding)
			words = append(words, namespace, pod, list, "mtu", string(mtu), "forward", string(forward))
			if got := strings.Join(words, " "); got != tt.want {
				t.Errorf("got  %s\nwant %s\nid %s", got, tt.want, id)
			}
		})
	}
}

func TestRefusedConfigurations(t *testing.T) {
	tests := []struct {
		name, command, args, config string
		code                        uint
		want                        string
	}{
		{"no name", "ADD", "", `{}`, types.ErrInvalidNetworkConfig, "network name"},
		{"path as name", "ADD", "", `{"name":"../x"}`, types.ErrInvalidNetworkConfig, "network name"},
		{"future", "ADD", "", `{"name":"n","cniVersion":"2.0.0"}`, types.ErrIncompatibleCNIVersion, "incompatible"},
		{"version text", "ADD", "", `{"name":"n","cniVersion":"x"}`, types.ErrIncompatibleCNIVersion, "incompatible"},
		{"early check", "CHECK", "", `{"name":"n","cniVersion":"0.3.1"}`, types.ErrIncompatibleCNIVersion, "0.4.0"},
		{"early gc", "GC", "", `{"name":"n","cniVersion":"1.0.0"}`, types.ErrIncompatibleCNIVersion, "1.1.0"},
		{"early status", "STATUS", "", `{"name":"n","cniVersion":"1.0.0"}`, types.ErrIncompatibleCNIVersion, "1.1.0"},
		{"no command", "", "", `{"name":"n"}`, types.ErrInvalidEnvironmentVariables, "CNI_COMMAND"},
		{"argument", "ADD", "IP", `{"name":"n"}`, types.ErrInvalidEnvironmentVariables, "KEY=VALUE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parsed(t, tt.command, tt.args, tt.config)
			if err == nil {
				err = allowedIn(tt.command, c.conf.CNIVersion)
			}
			var e *types.Error
			if !errors.As(err, &e) || e.Code != tt.code || !strings.Contains(e.Error(), tt.want) {
				t.Errorf("error %v, want code %d and %q", err, tt.code, tt.want)
			}
		})
	}
}

// FuzzCall: whatever a runtime sends, the answer is a call or an error with a code.
func FuzzCall(f *testing.F) {
	f.Add("ADD", "c1", "eth0", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", `{"name":"n","cniVersion":"1.1.0"}`)
	f.Add("CHECK", "c1", "eth0", "", `{"name":"n","cniVersion":"1.0.0","prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/32","interface":7}]}}`)
	f.Add("ADD", "", "", "=;=", `{"name":"n","ipam":{"assign_ipv4":"maybe"},"runtimeConfig":{"ips":["x"]}}`)
	f.Fuzz(func(t *testing.T, command, id, ifName, args, config string) {
		c, err := parseCall(wire.Request{Command: command, ContainerID: id, IfName: ifName, Args: args, Config: json.RawMessage(config)})
		if err != nil {
			if toError(err).Code == types.ErrInternal {
				t.Errorf("no code for %v", err)
			}
			return
		}
		if _, err := c.spec(nil); err != nil && toError(err).Code == types.ErrInternal {
			t.Errorf("no code for %v", err)
		}
		if _, err := previousAddresses(c.conf, ifName); err != nil && toError(err).Code == types.ErrInternal {
			t.Errorf("no code for %v", err)
		}
	})
}
