package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manekinet/maneki/cni/wire"
	"github.com/manekinet/maneki/endpoint"
)

// config is the network configuration: the keys of Calico's (spec/calico.md §4) that mean something here. Others are
// ignored, as the specification of CNI wants; among them nodename and everything about Calico's datastore, which are
// the agent's business and not the container's.
type config struct {
	types.PluginConf
	MTU    int `json:"mtu"`
	Policy struct {
		Type string `json:"type"`
	} `json:"policy"`
	IPAM              ipamConfig `json:"ipam"`
	ContainerSettings struct {
		AllowIPForwarding bool `json:"allow_ip_forwarding"`
	} `json:"container_settings"`
	Args struct {
		Maneki struct {
			Namespace string            `json:"namespace"`
			Name      string            `json:"name"`
			Labels    map[string]string `json:"labels"`
		} `json:"maneki.net"`
	} `json:"args"`
	RuntimeConfig struct { // CNI CONVENTIONS.md, "dynamic plugin specific fields"
		MAC string   `json:"mac"`
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
}

type ipamConfig struct {
	Type       string   `json:"type"`
	AssignIPv4 *yesNo   `json:"assign_ipv4"`
	AssignIPv6 *yesNo   `json:"assign_ipv6"`
	IPv4Pools  []string `json:"ipv4_pools"`
	IPv6Pools  []string `json:"ipv6_pools"`
}

// yesNo is a boolean that Calico writes as the text "true" or "false".
type yesNo bool

func (b *yesNo) UnmarshalJSON(data []byte) error {
	switch s := string(data); s {
	case `"true"`, "true":
		*b = true
	case `"false"`, "false":
		*b = false
	default:
		return fmt.Errorf(`%s is neither "true" nor "false"`, s)
	}
	return nil
}

// invalid is the error for a value of the configuration that cannot be used.
func invalid(field, value, allowed string) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s %q is not allowed", field, value), "allowed: "+allowed)
}

// parseConfig reads the configuration and checks what every command needs.
func parseConfig(data []byte) (*config, error) {
	c := &config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration cannot be read", err.Error())
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return nil, err
	}
	var known version.Reconciler
	conf := c.CNIVersion
	if conf == "" {
		conf = "0.1.0" // as the specification says for a configuration without version
	}
	if err := known.Check(conf, version.All); err != nil {
		return nil, types.NewError(types.ErrIncompatibleCNIVersion, "incompatible CNI versions", err.Details())
	}
	c.CNIVersion = conf
	return c, nil
}

// arguments is CNI_ARGS, as far as known; unknown keys are ignored.
type arguments struct {
	ip, mac, podNamespace, pod string
}

func parseArguments(s string) (a arguments, err error) {
	known := map[string]*string{
		"IP": &a.ip, "MAC": &a.mac, "K8S_POD_NAMESPACE": &a.podNamespace, "K8S_POD_NAME": &a.pod,
	}
	for pair := range strings.SplitSeq(s, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok && pair != "" {
			return a, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS %q is not allowed", pair),
				"allowed: KEY=VALUE pairs separated by ';'")
		}
		if p := known[key]; p != nil {
			*p = value
		}
	}
	return a, nil
}

// call is one request with its configuration.
type call struct {
	wire.Request
	conf *config
	args arguments
}

func parseCall(req wire.Request) (*call, error) {
	c := &call{Request: req}
	var err error
	if c.conf, err = parseConfig(req.Config); err != nil {
		return nil, err
	}
	if req.Command != "ADD" && req.Command != "DEL" && req.Command != "CHECK" {
		return c, nil
	}
	// The executable has checked these; whoever else speaks to the socket may not have.
	if err := utils.ValidateContainerID(req.ContainerID); err != nil {
		return nil, err
	}
	if err := utils.ValidateInterfaceName(req.IfName); err != nil {
		return nil, err
	}
	if c.args, err = parseArguments(req.Args); err != nil {
		return nil, err
	}
	return c, nil
}

// id names the attachment. A pod's endpoint is named after the pod, that of a plain container after the container.
func (c *call) id() endpoint.ID {
	id := endpoint.ID{
		Network: c.conf.Name, ContainerID: c.ContainerID, IfName: c.IfName, Namespace: c.conf.Args.Maneki.Namespace,
	}
	if c.args.pod != "" && c.args.podNamespace != "" {
		id.Namespace, id.Pod = c.args.podNamespace, c.args.pod
	}
	return id
}

// spec translates an ADD.
func (c *call) spec(netns *os.File) (endpoint.Spec, error) {
	own := c.conf.Args.Maneki
	s := endpoint.Spec{
		ID: c.id(), Netns: netns, Workload: own.Name, Labels: own.Labels,
		MTU: c.conf.MTU, AllowForwarding: c.conf.ContainerSettings.AllowIPForwarding,
		IPv4: true, Pools4: c.conf.IPAM.IPv4Pools, Pools6: c.conf.IPAM.IPv6Pools,
	}
	switch c.conf.IPAM.Type {
	case "", "maneki-ipam", "calico-ipam":
	default:
		return s, invalid("ipam.type", c.conf.IPAM.Type, `"maneki-ipam" or "calico-ipam" (the same); other IPAM plugins are not called`)
	}
	if v := c.conf.IPAM.AssignIPv4; v != nil {
		s.IPv4 = bool(*v)
	}
	if v := c.conf.IPAM.AssignIPv6; v != nil {
		s.IPv6 = bool(*v)
	}
	if c.conf.Policy.Type == "k8s" && s.Pod != "" {
		s.ServiceAccount = "default"
		s.Profiles = []string{"kns." + s.Namespace, "ksa." + s.Namespace + "." + s.ServiceAccount}
	}
	return s, c.fixed(&s)
}

// fixed reads the address and hardware address that the caller insists on.
func (c *call) fixed(s *endpoint.Spec) error {
	var texts []string
	if c.args.ip != "" {
		texts = strings.Split(c.args.ip, ",")
	}
	for _, t := range append(texts, c.conf.RuntimeConfig.IPs...) {
		a, err := parseAddr(t)
		if err != nil {
			return invalid("IP", t, "an address such as 192.168.36.200, with or without prefix length")
		}
		s.Addrs = append(s.Addrs, a)
	}
	mac := c.args.mac
	if c.conf.RuntimeConfig.MAC != "" {
		mac = c.conf.RuntimeConfig.MAC
	}
	if mac == "" {
		return nil
	}
	var err error
	if s.MAC, err = net.ParseMAC(mac); err != nil {
		return invalid("MAC", mac, "a hardware address such as 02:42:ac:11:00:02")
	}
	return nil
}

// parseAddr reads an address with or without prefix length.
func parseAddr(s string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr(), nil
	}
	return netip.ParseAddr(s)
}
