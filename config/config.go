// Package config says where the datastore is: it reads Calico's CalicoAPIConfig
// file and the environment variables that stand in for it (spec/calico.md §1.6),
// and opens the datastore they name.
package config

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// DefaultPath is the file read when no other is named, if it is there.
const DefaultPath = "/etc/calico/calicoctl.cfg"

// DefaultEndpoint is where the embedded etcd of this host's agent listens. It is
// tried when no datastore is named at all.
const DefaultEndpoint = "http://127.0.0.1:2379"

// Type is a kind of datastore.
type Type string

// The datastores that a configuration can name.
const (
	Unnamed    Type = "" // none named: the embedded etcd of this host's agent
	EtcdV3     Type = "etcdv3"
	Kubernetes Type = "kubernetes"
)

// Secret is text that must not be printed: every way of formatting it, JSON
// included, gives a placeholder. string(s) is the text.
type Secret string

const redacted = "(secret)"

// String hides the text; an empty secret stays empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the text from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// MarshalText hides the text from JSON and slog.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config names one datastore and how to connect to it. The zero value is the
// embedded etcd of this host's agent.
type Config struct {
	Type   Type
	Source string // the file, "the environment", or "" when nothing names a datastore

	EtcdEndpoints    []string // http:// or https:// URLs with a port
	EtcdDiscoverySRV string   // DNS domain whose _etcd-client SRV records list the endpoints
	EtcdUsername     string
	EtcdPassword     Secret
	EtcdKeyFile      string // the three files: PEM
	EtcdCertFile     string
	EtcdCACertFile   string
	EtcdKey          Secret // the three inline: PEM, instead of the files
	EtcdCert         string
	EtcdCACert       string

	Kube KubeConfig
}

// KubeConfig is the part of the configuration for the Kubernetes datastore.
type KubeConfig struct {
	Kubeconfig            string
	APIEndpoint           string
	KeyFile               string
	CertFile              string
	CAFile                string
	APIToken              Secret
	InsecureSkipTLSVerify bool
	DisableNodePoll       bool
	UsePodCIDR            bool
	KubeconfigInline      Secret
	ClientQPS             float32
	ClientBurst           int
	CurrentContext        string
	CalicoAPIGroup        string
}

// String describes the datastore in one line without any secret.
func (c Config) String() string {
	var b strings.Builder
	switch c.Type {
	case Kubernetes:
		b.WriteString("kubernetes")
		if c.Kube.APIEndpoint != "" {
			b.WriteString(" at " + redactURL(c.Kube.APIEndpoint))
		}
	case EtcdV3:
		b.WriteString("etcdv3 at " + c.where())
	default:
		b.WriteString("the embedded etcd at " + DefaultEndpoint)
	}
	if c.EtcdUsername != "" {
		b.WriteString(", user " + c.EtcdUsername)
	}
	if c.EtcdCertFile != "" {
		b.WriteString(", certificate " + c.EtcdCertFile)
	}
	if c.Source != "" {
		b.WriteString(" (from " + c.Source + ")")
	}
	return b.String()
}

// GoString is String, so that no formatting verb prints a secret.
func (c Config) GoString() string { return c.String() }

func (c Config) where() string {
	if c.EtcdDiscoverySRV != "" {
		return "the SRV records of " + c.EtcdDiscoverySRV
	}
	var shown []string
	for _, e := range c.EtcdEndpoints {
		shown = append(shown, redactURL(e))
	}
	return strings.Join(shown, ",")
}

func redactURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(not a URL)" // a URL that cannot be parsed may hold a password anywhere
	}
	return u.Redacted()
}

// Load reads the configuration from the file at path or, when there is none,
// from the environment. An empty path means DefaultPath if that file exists; a
// path that is given must exist. Warnings are single lines for the user.
func Load(path string, environ func(string) string) (Config, []string, error) {
	text, source, err := readFile(path)
	if err != nil {
		return Config{}, nil, err
	}
	var c Config
	var warnings []string
	if source != "" {
		c, warnings, err = parseFile(source, text)
	} else {
		c, warnings, err = fromEnvironment(environ)
	}
	if err != nil {
		return Config{}, nil, err
	}
	c.detectType()
	if err := c.validate(); err != nil {
		return Config{}, nil, fmt.Errorf("%s: %w", c.Source, err)
	}
	return c, warnings, nil
}

// readFile returns the configuration file's text and name; both are empty when
// no path is given and DefaultPath is not there.
func readFile(path string) (text []byte, source string, err error) {
	explicit := path != ""
	if !explicit {
		path = DefaultPath
	}
	text, err = os.ReadFile(path)
	// calicoctl users type the default path with -c; it may be missing then too.
	if errors.Is(err, os.ErrNotExist) && (!explicit || path == DefaultPath) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read configuration: %w", err)
	}
	return text, path, nil
}

func (c *Config) detectType() {
	if c.Type != Unnamed {
		return
	}
	switch {
	case len(c.EtcdEndpoints) > 0 || c.EtcdDiscoverySRV != "":
		c.Type = EtcdV3
	case c.Kube.Kubeconfig != "" || c.Kube.APIEndpoint != "" || c.Kube.KubeconfigInline != "":
		c.Type = Kubernetes
	default:
		c.Source = ""
	}
}

// validate checks what the format alone cannot: fields that exclude or need each
// other (spec/calico.md §1.6).
func (c *Config) validate() error {
	switch c.Type {
	case Unnamed, Kubernetes:
		return nil
	case EtcdV3:
	default:
		return fmt.Errorf("datastoreType %q is not known (allowed: etcdv3, kubernetes)", c.Type)
	}
	if len(c.EtcdEndpoints) > 0 && c.EtcdDiscoverySRV != "" {
		return errors.New("etcdEndpoints and etcdDiscoverySrv exclude each other; keep one")
	}
	if len(c.EtcdEndpoints) == 0 && c.EtcdDiscoverySRV == "" {
		return errors.New("datastoreType etcdv3 needs etcdEndpoints (such as http://10.0.0.1:2379) or etcdDiscoverySrv")
	}
	for _, e := range c.EtcdEndpoints {
		if err := checkEndpoint(e); err != nil {
			return err
		}
	}
	return c.validateTLS()
}

func (c *Config) validateTLS() error {
	files := c.EtcdKeyFile != "" || c.EtcdCertFile != "" || c.EtcdCACertFile != ""
	inline := c.EtcdKey != "" || c.EtcdCert != "" || c.EtcdCACert != ""
	if files && inline {
		return errors.New("etcdKeyFile, etcdCertFile, etcdCACertFile and the inline etcdKey, etcdCert, etcdCACert exclude each other; keep one group")
	}
	if (c.EtcdKeyFile == "") != (c.EtcdCertFile == "") {
		return errors.New("etcdKeyFile and etcdCertFile go together; give both or neither")
	}
	if (c.EtcdKey == "") != (c.EtcdCert == "") {
		return errors.New("etcdKey and etcdCert go together; give both or neither")
	}
	if c.EtcdPassword != "" && c.EtcdUsername == "" {
		return errors.New("etcdPassword is given without etcdUsername")
	}
	return nil
}

func checkEndpoint(e string) error {
	u, err := url.Parse(e)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("etcd endpoint %q is not a URL (allowed: http://HOST:PORT or https://HOST:PORT, several separated by commas)", redactURL(e))
	}
	if u.User != nil {
		return fmt.Errorf("etcd endpoint %q holds a password; use etcdUsername and etcdPassword", u.Redacted())
	}
	if u.Port() == "" {
		return fmt.Errorf("etcd endpoint %q has no port (etcd's is 2379)", e)
	}
	if strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("etcd endpoint %q has a path (allowed: http://HOST:PORT or https://HOST:PORT)", e)
	}
	return nil
}

// splitEndpoints cuts a comma-separated list, spaces allowed.
func splitEndpoints(list string) []string {
	var endpoints []string
	for _, e := range strings.Split(list, ",") {
		if e = strings.TrimRight(strings.TrimSpace(e), "/"); e != "" {
			endpoints = append(endpoints, e)
		}
	}
	return endpoints
}
