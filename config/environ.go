package config

import (
	"fmt"
	"strconv"
)

// environment reads variables that may carry the prefix CALICO_, which wins
// (spec/calico.md §1.6), and keeps the first value that cannot be parsed.
type environment struct {
	lookup func(string) string
	err    error
}

func (e *environment) text(name string) string {
	if v := e.lookup("CALICO_" + name); v != "" {
		return v
	}
	return e.lookup(name)
}

func (e *environment) secret(name string) Secret { return Secret(e.text(name)) }

func (e *environment) flag(name string) bool {
	v := e.text(name)
	if v == "" {
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		e.fail(name, v, "true or false")
	}
	return b
}

func (e *environment) number(name string, bits int) float64 {
	v := e.text(name)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseFloat(v, bits)
	if err != nil {
		e.fail(name, v, "a number")
	}
	return n
}

func (e *environment) whole(name string) int {
	v := e.text(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		e.fail(name, v, "a whole number")
	}
	return n
}

func (e *environment) fail(name, value, allowed string) {
	if e.err == nil {
		e.err = fmt.Errorf("environment variable %s is %q, it must be %s", name, value, allowed)
	}
}

const environmentSource = "the environment"

func fromEnvironment(lookup func(string) string) (Config, []string, error) {
	e := &environment{lookup: lookup}
	c := Config{
		Type:             Type(e.text("DATASTORE_TYPE")),
		Source:           environmentSource,
		EtcdEndpoints:    splitEndpoints(e.text("ETCD_ENDPOINTS")),
		EtcdDiscoverySRV: e.text("ETCD_DISCOVERY_SRV"),
		EtcdUsername:     e.text("ETCD_USERNAME"),
		EtcdPassword:     e.secret("ETCD_PASSWORD"),
		EtcdKeyFile:      e.text("ETCD_KEY_FILE"),
		EtcdCertFile:     e.text("ETCD_CERT_FILE"),
		EtcdCACertFile:   e.text("ETCD_CA_CERT_FILE"),
		Kube: KubeConfig{
			Kubeconfig:            e.text("KUBECONFIG"),
			APIEndpoint:           e.text("K8S_API_ENDPOINT"),
			KeyFile:               e.text("K8S_KEY_FILE"),
			CertFile:              e.text("K8S_CERT_FILE"),
			CAFile:                e.text("K8S_CA_FILE"),
			APIToken:              e.secret("K8S_API_TOKEN"),
			InsecureSkipTLSVerify: e.flag("K8S_INSECURE_SKIP_TLS_VERIFY"),
			DisableNodePoll:       e.flag("K8S_DISABLE_NODE_POLL"),
			UsePodCIDR:            e.flag("USE_POD_CIDR"),
			ClientQPS:             float32(e.number("K8S_CLIENT_QPS", 32)),
			ClientBurst:           e.whole("K8S_CLIENT_BURST"),
			CurrentContext:        e.text("K8S_CURRENT_CONTEXT"),
			CalicoAPIGroup:        e.text("CALICO_API_GROUP"),
		},
	}
	if e.err != nil {
		return Config{}, nil, e.err
	}
	return c, oldVariables(&c, e), nil
}

// oldVariables reads the names of Calico 2 and says what to write instead.
func oldVariables(c *Config, e *environment) []string {
	var warnings []string
	if c.Type == "etcdv2" {
		c.Type = EtcdV3
		warnings = append(warnings, "DATASTORE_TYPE=etcdv2 is read as etcd's v3 API at the same endpoints; write instead: DATASTORE_TYPE=etcdv3")
	}
	authority := e.text("ETCD_AUTHORITY")
	if authority != "" && len(c.EtcdEndpoints) == 0 && c.EtcdDiscoverySRV == "" && c.Type != Kubernetes {
		c.EtcdEndpoints = []string{authorityURL(e.text("ETCD_SCHEME"), authority)}
		warnings = append(warnings, "ETCD_AUTHORITY and ETCD_SCHEME are of Calico 2; write instead: ETCD_ENDPOINTS="+c.where())
	}
	return warnings
}
