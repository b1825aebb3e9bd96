package config_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/config"
)

func environ(pairs ...string) func(string) string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return m[name] }
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "calicoctl.cfg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const v3Head = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"

func TestLoadFile(t *testing.T) {
	tests := []struct {
		name, text string
		want       config.Config // without Source
		warning    string        // without the file's name
	}{
		{
			name: "v3",
			text: v3Head + "  datastoreType: etcdv3\n  etcdEndpoints: http://10.0.0.1:2379, http://10.0.0.2:2379/\n",
			want: config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{"http://10.0.0.1:2379", "http://10.0.0.2:2379"}},
		},
		{
			name: "v3 as JSON, type from endpoints, TLS files",
			text: `{"apiVersion":"projectcalico.org/v3","kind":"CalicoAPIConfig","metadata":{},"spec":{"etcdEndpoints":"https://[fd00::1]:2379","etcdUsername":"u","etcdPassword":"p","etcdKeyFile":"k","etcdCertFile":"c","etcdCACertFile":"ca"}}`,
			want: config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{"https://[fd00::1]:2379"}, EtcdUsername: "u", EtcdPassword: "p", EtcdKeyFile: "k", EtcdCertFile: "c", EtcdCACertFile: "ca"},
		},
		{
			name: "v3 inline PEM",
			text: v3Head + "  etcdDiscoverySrv: example.org\n  etcdKey: K\n  etcdCert: C\n  etcdCACert: A\n",
			want: config.Config{Type: config.EtcdV3, EtcdDiscoverySRV: "example.org", EtcdKey: "K", EtcdCert: "C", EtcdCACert: "A"},
		},
		{
			name: "kubernetes",
			text: v3Head + "  kubeconfig: /k\n  k8sAPIToken: t\n  k8sClientQPS: 5\n  k8sInsecureSkipTLSVerify: true\n  usePodCIDR: true\n",
			want: config.Config{Type: config.Kubernetes, Kube: config.KubeConfig{Kubeconfig: "/k", APIToken: "t", ClientQPS: 5, InsecureSkipTLSVerify: true, UsePodCIDR: true}},
		},
		{
			name:    "Calico 2",
			text:    "apiVersion: v1\nkind: calicoApiConfig\nmetadata:\nspec:\n  datastoreType: \"etcdv2\"\n  etcdEndpoints: \"http://192.168.59.156:2379\"\n",
			want:    config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{"http://192.168.59.156:2379"}},
			warning: " has the form of Calico 2, it is read as the same endpoints through etcd's v3 API; write instead: apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, datastoreType: etcdv3",
		},
		{
			name:    "Calico 2 by authority",
			text:    "apiVersion: v1\nkind: calicoApiConfig\nspec: {etcdAuthority: \"10.0.0.1:2379\", etcdScheme: https}\n",
			want:    config.Config{Type: config.EtcdV3, EtcdEndpoints: []string{"https://10.0.0.1:2379"}},
			warning: " has the form of Calico 2, it is read as the same endpoints through etcd's v3 API; write instead: apiVersion: projectcalico.org/v3, kind: CalicoAPIConfig, etcdEndpoints: https://10.0.0.1:2379 (for etcdAuthority and etcdScheme)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, tt.text)
			// A file wins over the environment as a whole.
			got, warnings, err := config.Load(path, environ("ETCD_ENDPOINTS", "http://9.9.9.9:2379", "ETCD_USERNAME", "nobody"))
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Source = path
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if tt.warning == "" && len(warnings) > 0 || tt.warning != "" && (len(warnings) != 1 || warnings[0] != path+tt.warning) {
				t.Errorf("warnings %q, want %q", warnings, tt.warning)
			}
		})
	}
}

func TestLoadFileErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown field", v3Head + "  etcdEndpoint: http://a:1\n", `:5: unknown field "spec.etcdEndpoint", did you mean "etcdEndpoints"?`},
		{"unknown apiVersion", "apiVersion: v2\nkind: CalicoAPIConfig\n", `: unknown apiVersion "v2" (allowed: projectcalico.org/v3; v1 is read too)`},
		{"kind", "apiVersion: projectcalico.org/v3\nkind: Node\n", `: kind is "Node", it must be CalicoAPIConfig`},
		{"v1 kind", "apiVersion: v1\nkind: Config\n", `: kind is "Config", with apiVersion v1 it must be calicoApiConfig`},
		{"etcdv2 in v3", v3Head + "  datastoreType: etcdv2\n  etcdEndpoints: http://a:1\n", `: datastoreType etcdv2 no longer exists; write datastoreType: etcdv3`},
		{"type", v3Head + "  datastoreType: consul\n", `: datastoreType "consul" is not known (allowed: etcdv3, kubernetes)`},
		{"v1 type", "apiVersion: v1\nkind: calicoApiConfig\nspec: {datastoreType: etcdv3}\n", `: datastoreType "etcdv3" is not known with apiVersion v1 (allowed: etcdv2, kubernetes)`},
		{"no endpoints", v3Head + "  datastoreType: etcdv3\n", `: datastoreType etcdv3 needs etcdEndpoints (such as http://10.0.0.1:2379) or etcdDiscoverySrv`},
		{"endpoints and SRV", v3Head + "  etcdEndpoints: http://a:1\n  etcdDiscoverySrv: b\n", `: etcdEndpoints and etcdDiscoverySrv exclude each other; keep one`},
		{"files and inline", v3Head + "  etcdEndpoints: https://a:1\n  etcdCACertFile: f\n  etcdCert: c\n  etcdKey: k\n", `: etcdKeyFile, etcdCertFile, etcdCACertFile and the inline etcdKey, etcdCert, etcdCACert exclude each other; keep one group`},
		{"key without certificate", v3Head + "  etcdEndpoints: https://a:1\n  etcdKeyFile: f\n", `: etcdKeyFile and etcdCertFile go together; give both or neither`},
		{"password without user", v3Head + "  etcdEndpoints: https://a:1\n  etcdPassword: f\n", `: etcdPassword is given without etcdUsername`},
		{"no scheme", v3Head + "  etcdEndpoints: 10.0.0.1:2379\n", `: etcd endpoint "(not a URL)" is not a URL (allowed: http://HOST:PORT or https://HOST:PORT, several separated by commas)`},
		{"no port", v3Head + "  etcdEndpoints: http://10.0.0.1\n", `: etcd endpoint "http://10.0.0.1" has no port (etcd's is 2379)`},
		{"path", v3Head + "  etcdEndpoints: http://10.0.0.1:2379/v2\n", `: etcd endpoint "http://10.0.0.1:2379/v2" has a path (allowed: http://HOST:PORT or https://HOST:PORT)`},
		{"password in URL", v3Head + "  etcdEndpoints: http://u:hunter2@10.0.0.1:2379\n", `: etcd endpoint "http://u:xxxxx@10.0.0.1:2379" holds a password; use etcdUsername and etcdPassword`},
		{"wrong type", v3Head + "  etcdEndpoints: [http://a:1]\n", `:5: field "spec.etcdEndpoints" is of type array, it must be a string`},
		{"empty", "# nothing\n", `: it holds 0 documents, one CalicoAPIConfig is expected`},
		{"two", v3Head + "---\n" + v3Head, `: it holds 2 documents, one CalicoAPIConfig is expected`},
		{"list", "- a\n", `: it is not a mapping with apiVersion, kind and spec`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, tt.text)
			_, _, err := config.Load(path, environ())
			if err == nil || err.Error() != path+tt.want {
				t.Errorf("got  %v\nwant %s", err, path+tt.want)
			}
		})
	}
}

func TestLoadEnvironment(t *testing.T) {
	tests := []struct {
		name    string
		env     []string
		want    config.Config
		warning string
		err     string
	}{
		{name: "nothing named", want: config.Config{}},
		{
			name: "etcd",
			env:  []string{"ETCD_ENDPOINTS", "https://10.0.0.1:2379", "ETCD_USERNAME", "u", "ETCD_PASSWORD", "p", "ETCD_KEY_FILE", "k", "ETCD_CERT_FILE", "c", "ETCD_CA_CERT_FILE", "ca"},
			want: config.Config{Type: config.EtcdV3, Source: "the environment", EtcdEndpoints: []string{"https://10.0.0.1:2379"}, EtcdUsername: "u", EtcdPassword: "p", EtcdKeyFile: "k", EtcdCertFile: "c", EtcdCACertFile: "ca"},
		},
		{
			name: "the prefix wins",
			env:  []string{"ETCD_ENDPOINTS", "http://10.0.0.1:2379", "CALICO_ETCD_ENDPOINTS", "http://10.0.0.2:2379", "CALICO_DATASTORE_TYPE", "etcdv3"},
			want: config.Config{Type: config.EtcdV3, Source: "the environment", EtcdEndpoints: []string{"http://10.0.0.2:2379"}},
		},
		{
			name: "SRV",
			env:  []string{"ETCD_DISCOVERY_SRV", "example.org"},
			want: config.Config{Type: config.EtcdV3, Source: "the environment", EtcdDiscoverySRV: "example.org"},
		},
		{
			name: "kubernetes",
			env:  []string{"K8S_API_ENDPOINT", "https://1.2.3.4", "K8S_INSECURE_SKIP_TLS_VERIFY", "true", "K8S_CLIENT_QPS", "2.5", "K8S_CLIENT_BURST", "7", "USE_POD_CIDR", "1", "CALICO_API_GROUP", "projectcalico.org/v3"},
			want: config.Config{Type: config.Kubernetes, Source: "the environment", Kube: config.KubeConfig{APIEndpoint: "https://1.2.3.4", InsecureSkipTLSVerify: true, ClientQPS: 2.5, ClientBurst: 7, UsePodCIDR: true, CalicoAPIGroup: "projectcalico.org/v3"}},
		},
		{
			name:    "Calico 2",
			env:     []string{"ETCD_AUTHORITY", "10.0.0.1:2379", "ETCD_SCHEME", "https"},
			want:    config.Config{Type: config.EtcdV3, Source: "the environment", EtcdEndpoints: []string{"https://10.0.0.1:2379"}},
			warning: "ETCD_AUTHORITY and ETCD_SCHEME are of Calico 2; write instead: ETCD_ENDPOINTS=https://10.0.0.1:2379",
		},
		{
			name:    "etcdv2",
			env:     []string{"DATASTORE_TYPE", "etcdv2", "ETCD_ENDPOINTS", "http://10.0.0.1:2379", "ETCD_AUTHORITY", "ignored:1"},
			want:    config.Config{Type: config.EtcdV3, Source: "the environment", EtcdEndpoints: []string{"http://10.0.0.1:2379"}},
			warning: "DATASTORE_TYPE=etcdv2 is read as etcd's v3 API at the same endpoints; write instead: DATASTORE_TYPE=etcdv3",
		},
		{name: "flag", env: []string{"USE_POD_CIDR", "maybe"}, err: `environment variable USE_POD_CIDR is "maybe", it must be true or false`},
		{name: "number", env: []string{"K8S_CLIENT_BURST", "x"}, err: `environment variable K8S_CLIENT_BURST is "x", it must be a whole number`},
		{name: "QPS", env: []string{"K8S_CLIENT_QPS", "x"}, err: `environment variable K8S_CLIENT_QPS is "x", it must be a number`},
		{name: "type", env: []string{"DATASTORE_TYPE", "consul"}, err: `the environment: datastoreType "consul" is not known (allowed: etcdv3, kubernetes)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := os.Stat(config.DefaultPath); err == nil {
				t.Fatalf("%s exists on this machine; this test needs it absent", config.DefaultPath)
			}
			got, warnings, err := config.Load("", environ(tt.env...))
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("got error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if strings.Join(warnings, "\n") != tt.warning {
				t.Errorf("warnings %q, want %q", warnings, tt.warning)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, _, err := config.Load(filepath.Join(t.TempDir(), "none"), environ("ETCD_ENDPOINTS", "http://a:1"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named and is missing: %v", err)
	}
}

// TestNoSecretIsPrinted formats a configuration full of secrets in every way.
func TestNoSecretIsPrinted(t *testing.T) {
	c := config.Config{
		Type: config.EtcdV3, EtcdEndpoints: []string{"http://u:hunter2@a:1"}, EtcdUsername: "user",
		EtcdPassword: "hunter2", EtcdKey: "hunter2",
		Kube: config.KubeConfig{APIToken: "hunter2", KubeconfigInline: "hunter2"},
	}
	asJSON, err := json.Marshal(c.Kube)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("config", "kube", c.Kube, "password", c.EtcdPassword)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("config", "config", c, "password", c.EtcdPassword)
	texts := []string{c.String(), string(asJSON), logged.String(), fmt.Sprintf("%v %+v %#v %s", c, c, c, c), fmt.Sprintf("%v %+v %#v", c.Kube, c.Kube, c.Kube)}
	for _, text := range texts {
		if strings.Contains(text, "hunter2") {
			t.Errorf("a secret is printed: %s", text)
		}
	}
	if want := "etcdv3 at http://u:xxxxx@a:1, user user"; c.String() != want {
		t.Errorf("String() = %q, want %q", c.String(), want)
	}
	if got := (config.Config{}).String(); got != "the embedded etcd at http://127.0.0.1:2379" {
		t.Errorf("String() of none = %q", got)
	}
}

func TestOpenKubernetes(t *testing.T) {
	_, err := config.Open(context.Background(), config.Config{Type: config.Kubernetes, Source: "f"}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, config.ErrKubernetes) {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(v3Head + "  etcdEndpoints: http://10.0.0.1:2379\n"))
	f.Add([]byte("apiVersion: v1\nkind: calicoApiConfig\nspec: {etcdAuthority: a}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := write(t, string(text))
		c, _, err := config.Load(path, environ())
		if err == nil && c.Type == config.EtcdV3 && len(c.EtcdEndpoints) == 0 && c.EtcdDiscoverySRV == "" {
			t.Errorf("etcdv3 without endpoints: %#v", c)
		}
		if err != nil && strings.Contains(strings.ReplaceAll(err.Error(), path, ""), "\n") {
			t.Errorf("error of several lines: %q", err)
		}
	})
}
