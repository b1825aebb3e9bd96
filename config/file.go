package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/manekinet/maneki/config/strict"
)

// apiConfig is the CalicoAPIConfig document.
type apiConfig struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"` // means nothing; any content is accepted
	Spec       apiConfigSpec   `json:"spec"`
}

// apiConfigSpec holds the fields of the v3 form.
type apiConfigSpec struct {
	DatastoreType string `json:"datastoreType"`

	EtcdEndpoints    string `json:"etcdEndpoints"`
	EtcdDiscoverySRV string `json:"etcdDiscoverySrv"`
	EtcdUsername     string `json:"etcdUsername"`
	EtcdPassword     string `json:"etcdPassword"`
	EtcdKeyFile      string `json:"etcdKeyFile"`
	EtcdCertFile     string `json:"etcdCertFile"`
	EtcdCACertFile   string `json:"etcdCACertFile"`
	EtcdKey          string `json:"etcdKey"`
	EtcdCert         string `json:"etcdCert"`
	EtcdCACert       string `json:"etcdCACert"`

	Kubeconfig               string  `json:"kubeconfig"`
	K8sAPIEndpoint           string  `json:"k8sAPIEndpoint"`
	K8sKeyFile               string  `json:"k8sKeyFile"`
	K8sCertFile              string  `json:"k8sCertFile"`
	K8sCAFile                string  `json:"k8sCAFile"`
	K8sAPIToken              string  `json:"k8sAPIToken"`
	K8sInsecureSkipTLSVerify bool    `json:"k8sInsecureSkipTLSVerify"`
	K8sDisableNodePoll       bool    `json:"k8sDisableNodePoll"`
	K8sUsePodCIDR            bool    `json:"usePodCIDR"`
	KubeconfigInline         string  `json:"kubeconfigInline"`
	K8sClientQPS             float32 `json:"k8sClientQPS"`
	K8sClientBurst           int     `json:"k8sClientBurst"`
	K8sCurrentContext        string  `json:"k8sCurrentContext"`
	CalicoAPIGroup           string  `json:"calicoAPIGroup"`
}

// v1Config is the document of Calico 2 and before. It had two more fields and
// none of the later ones.
type v1Config struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
	Spec       v1ConfigSpec    `json:"spec"`
}

type v1ConfigSpec struct {
	apiConfigSpec
	EtcdAuthority string `json:"etcdAuthority"`
	EtcdScheme    string `json:"etcdScheme"`
}

const (
	v3APIVersion = "projectcalico.org/v3"
	v3Kind       = "CalicoAPIConfig"
	v1APIVersion = "v1"
	v1Kind       = "calicoApiConfig"
)

func parseFile(source string, text []byte) (Config, []string, error) {
	docs := strict.Split(source, text)
	if len(docs) != 1 {
		return Config{}, nil, fmt.Errorf("%s: it holds %d documents, one %s is expected", source, len(docs), v3Kind)
	}
	raw, err := docs[0].JSON()
	if err != nil {
		return Config{}, nil, err
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Config{}, nil, fmt.Errorf("%s: it is not a mapping with apiVersion, kind and spec", source)
	}
	switch head.APIVersion {
	case v3APIVersion:
		return parseV3(docs[0], raw)
	case v1APIVersion:
		return parseV1(docs[0], raw)
	}
	return Config{}, nil, fmt.Errorf("%s: unknown apiVersion %q (allowed: %s; %s is read too)", source, head.APIVersion, v3APIVersion, v1APIVersion)
}

func parseV3(doc strict.Document, raw json.RawMessage) (Config, []string, error) {
	var file apiConfig
	if err := strict.DecodeJSON(doc, raw, &file); err != nil {
		return Config{}, nil, err
	}
	if file.Kind != v3Kind {
		return Config{}, nil, fmt.Errorf("%s: kind is %q, it must be %s", doc.Source, file.Kind, v3Kind)
	}
	if file.Spec.DatastoreType == "etcdv2" {
		return Config{}, nil, fmt.Errorf("%s: datastoreType etcdv2 no longer exists; write datastoreType: etcdv3", doc.Source)
	}
	return file.Spec.config(doc.Source), nil, nil
}

// parseV1 reads the form of Calico 2. Its data lived in etcd's v2 API; the same
// etcd serves the v3 API at the same endpoints, so those are kept.
func parseV1(doc strict.Document, raw json.RawMessage) (Config, []string, error) {
	var file v1Config
	if err := strict.DecodeJSON(doc, raw, &file); err != nil {
		return Config{}, nil, err
	}
	if file.Kind != v1Kind {
		return Config{}, nil, fmt.Errorf("%s: kind is %q, with apiVersion %s it must be %s", doc.Source, file.Kind, v1APIVersion, v1Kind)
	}
	write := []string{"apiVersion: " + v3APIVersion, "kind: " + v3Kind}
	switch file.Spec.DatastoreType {
	case "etcdv2", "":
		if file.Spec.DatastoreType != "" {
			file.Spec.DatastoreType = string(EtcdV3)
			write = append(write, "datastoreType: etcdv3")
		}
	case string(Kubernetes):
	default:
		return Config{}, nil, fmt.Errorf("%s: datastoreType %q is not known with apiVersion v1 (allowed: etcdv2, kubernetes)", doc.Source, file.Spec.DatastoreType)
	}
	if file.Spec.EtcdAuthority != "" && file.Spec.EtcdEndpoints == "" {
		file.Spec.EtcdEndpoints = authorityURL(file.Spec.EtcdScheme, file.Spec.EtcdAuthority)
		write = append(write, "etcdEndpoints: "+file.Spec.EtcdEndpoints+" (for etcdAuthority and etcdScheme)")
	}
	warning := fmt.Sprintf("%s has the form of Calico 2, it is read as the same endpoints through etcd's v3 API; write instead: %s", doc.Source, strings.Join(write, ", "))
	return file.Spec.config(doc.Source), []string{warning}, nil
}

// authorityURL is the endpoint that Calico 2's host:port and scheme stand for.
func authorityURL(scheme, authority string) string {
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + authority
}

func (s apiConfigSpec) config(source string) Config {
	return Config{
		Type:             Type(s.DatastoreType),
		Source:           source,
		EtcdEndpoints:    splitEndpoints(s.EtcdEndpoints),
		EtcdDiscoverySRV: s.EtcdDiscoverySRV,
		EtcdUsername:     s.EtcdUsername,
		EtcdPassword:     Secret(s.EtcdPassword),
		EtcdKeyFile:      s.EtcdKeyFile,
		EtcdCertFile:     s.EtcdCertFile,
		EtcdCACertFile:   s.EtcdCACertFile,
		EtcdKey:          Secret(s.EtcdKey),
		EtcdCert:         s.EtcdCert,
		EtcdCACert:       s.EtcdCACert,
		Kube: KubeConfig{
			Kubeconfig:            s.Kubeconfig,
			APIEndpoint:           s.K8sAPIEndpoint,
			KeyFile:               s.K8sKeyFile,
			CertFile:              s.K8sCertFile,
			CAFile:                s.K8sCAFile,
			APIToken:              Secret(s.K8sAPIToken),
			InsecureSkipTLSVerify: s.K8sInsecureSkipTLSVerify,
			DisableNodePoll:       s.K8sDisableNodePoll,
			UsePodCIDR:            s.K8sUsePodCIDR,
			KubeconfigInline:      Secret(s.KubeconfigInline),
			ClientQPS:             s.K8sClientQPS,
			ClientBurst:           s.K8sClientBurst,
			CurrentContext:        s.K8sCurrentContext,
			CalicoAPIGroup:        s.CalicoAPIGroup,
		},
	}
}
