// Package convert turns Kubernetes manifests (NetworkPolicy, Namespace,
// ServiceAccount, ClusterNetworkPolicy) into v3 resources by the rules that
// Calico's Kubernetes datastore follows (spec/calico.md §2.6). It is pure: text
// in, resources out. What cannot be converted is an error that names the field
// and its value; nothing is left out silently.
//
// A manifest has not been through Kubernetes' API server, which decides two
// things here: directions that are not given are what the API server would fill
// in, and what it would refuse is refused. A converted policy is stored beside
// the Calico policies, so that its name has the prefix that Calico's own policy
// controller uses in etcd: knp.default.<name>, and kcnp.<tier>.<name> for a
// ClusterNetworkPolicy.
package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/manekinet/maneki/api"
)

// Options say what a manifest leaves open. The zero value follows Calico.
type Options struct {
	// Namespace is the one of manifests that name none. If it is empty a
	// NetworkPolicy keeps none and a ServiceAccount is of "default".
	Namespace string
	// AnyOrchestrator lets policies apply to the workloads of every orchestrator
	// and not to Kubernetes' pods alone.
	AnyOrchestrator bool
}

// The kinds that are converted, each with its apiVersion.
const (
	networkPolicyVersion = "networking.k8s.io/v1"
	clusterPolicyVersion = "policy.networking.k8s.io/v1alpha2"
	coreVersion          = "v1"
)

// converted lists the kinds that are converted, with their versions.
func converted() map[string]string {
	return map[string]string{
		"NetworkPolicy":        networkPolicyVersion,
		"ClusterNetworkPolicy": clusterPolicyVersion,
		"Namespace":            coreVersion,
		"ServiceAccount":       coreVersion,
	}
}

// head is what every document of Kubernetes begins with.
type head struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
}

// IsKubernetes reports whether the first resource of doc, YAML or JSON, is one of
// Kubernetes, which Manifest converts or refuses, and not one of Calico.
func IsKubernetes(doc []byte) bool {
	docs, err := api.SplitDocuments(bytes.NewReader(doc))
	if err != nil || len(docs) == 0 {
		return false
	}
	var h head
	if json.Unmarshal(docs[0], &h) != nil || h.Kind == "" || h.APIVersion == "" {
		return false
	}
	group, _, grouped := strings.Cut(h.APIVersion, "/")
	if group == "projectcalico.org" || group == "crd.projectcalico.org" {
		return false
	}
	if _, ok := converted()[h.Kind]; ok {
		return true
	}
	ofCalico := slices.ContainsFunc(api.Kinds(), func(k api.Kind) bool { return strings.EqualFold(k.Name, h.Kind) })
	builtIn := slices.Contains([]string{"apps", "batch", "policy", "autoscaling", "extensions"}, group)
	return !ofCalico && (!grouped || builtIn || strings.HasSuffix(group, ".k8s.io"))
}

// Manifest converts every resource of doc, YAML or JSON, in its order, with the
// zero Options. The resources are defaulted and valid but for the namespace of a
// NetworkPolicy that names none, which stays empty for the caller to fill.
func Manifest(doc []byte) ([]api.Object, error) { return Options{}.Manifest(doc) }

// Manifest converts every resource of doc as the function Manifest does.
func (opts Options) Manifest(doc []byte) ([]api.Object, error) {
	docs, err := api.SplitDocuments(bytes.NewReader(doc))
	if err != nil {
		return nil, err
	}
	var objects []api.Object
	for _, d := range docs {
		o, err := opts.one(d)
		if err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, nil
}

func (opts Options) one(doc []byte) (api.Object, error) {
	var h head
	if err := json.Unmarshal(doc, &h); err != nil {
		return nil, fieldError("kind", "", "kind and apiVersion must be text")
	}
	version, ok := converted()[h.Kind]
	if !ok {
		return nil, fieldError("kind", h.Kind, "not a kind that is converted: ClusterNetworkPolicy, Namespace, NetworkPolicy, ServiceAccount")
	}
	if h.APIVersion != version {
		return nil, fieldError(h.Kind+".apiVersion", h.APIVersion, "must be "+version)
	}
	var o api.Object
	var err error
	switch h.Kind {
	case "NetworkPolicy":
		o, err = opts.networkPolicy(doc)
	case "ClusterNetworkPolicy":
		o, err = opts.clusterNetworkPolicy(doc)
	case "Namespace":
		o, err = namespace(doc)
	default:
		o, err = opts.serviceAccount(doc)
	}
	if err != nil {
		return nil, err
	}
	return o, check(h.Kind, o)
}

// check fills the defaults and applies the rules of the v3 kind, which the rules
// of the manifest's kind should imply.
func check(kind string, o api.Object) error {
	o.Default()
	m := o.Meta()
	unplaced := kind == "NetworkPolicy" && m.Namespace == ""
	if unplaced {
		m.Namespace = defaultNamespace
	}
	err := o.Validate()
	if unplaced {
		m.Namespace = ""
	}
	if err != nil {
		return fmt.Errorf("convert %s %s: %w", kind, m.Name, err)
	}
	return nil
}

const defaultNamespace = "default"

// metadata is what of Kubernetes' metadata has a meaning here; the rest, which
// the API server writes, is let pass.
type metadata struct {
	Name, Namespace, UID string
	Labels               map[string]string
}

// UnmarshalJSON reads the known fields and lets the others be.
func (m *metadata) UnmarshalJSON(data []byte) error {
	var v struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		UID       string            `json:"uid"`
		Labels    map[string]string `json:"labels"`
	}
	if json.Unmarshal(data, &v) != nil {
		return errors.New("must be a mapping in which name, namespace and uid are text and labels is a mapping of text")
	}
	*m = metadata(v)
	return nil
}

// validate checks the names; a namespaced kind may leave its namespace out.
func (m *metadata) validate(e *api.FieldErrors, kind string, namespaced bool) {
	const reason = "a name is at most 253 lower case letters, digits, '-' and '.', and starts and ends with a letter or digit"
	if !api.ValidName(m.Name) {
		e.Add(kind+".Metadata.Name", m.Name, reason)
	}
	switch {
	case m.Namespace == "":
	case !namespaced:
		e.Add(kind+".Metadata.Namespace", m.Namespace, kind+" does not live in a namespace")
	case !api.ValidName(m.Namespace):
		e.Add(kind+".Metadata.Namespace", m.Namespace, reason)
	}
	labels := api.LabelSelector{MatchLabels: m.Labels}
	var wrong api.FieldErrors
	labels.Validate(&wrong, kind+".Metadata")
	for _, f := range wrong.List {
		e.Add(strings.Replace(f.Field, "MatchLabels", "Labels", 1), f.Value, f.Reason)
	}
}

// uid is the UID under which Calico shows an object of Kubernetes: every byte
// with its bits reversed but for the version and the variant (spec/calico.md
// §2.2). Text that is no UID gives none.
func (m *metadata) uid() string {
	id, err := uuid.Parse(m.UID)
	if err != nil {
		return ""
	}
	for i := range id {
		if i != 6 && i != 8 {
			id[i] = bits.Reverse8(id[i])
		}
	}
	return id.String()
}

func fieldError(field, value, reason string) error {
	const limit = 120
	if len(value) > limit {
		value = value[:limit] + "..."
	}
	var e api.FieldErrors
	e.Add(field, value, reason)
	return e.Err()
}
