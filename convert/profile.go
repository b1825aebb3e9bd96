package convert

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/manekinet/maneki/api"
)

// Prefixes of the labels that endpoints inherit from their namespace and their
// service account, and of the profiles that carry them.
const (
	namespacePrefix       = "pcns."
	serviceAccountPrefix  = "pcsa."
	namespaceProfile      = "kns."
	serviceAccountProfile = "ksa."
	nameLabel             = "projectcalico.org/name"
	maxLabelValue         = 63
)

// manifest is a resource of which only the metadata counts.
type manifest struct {
	Kind       string          `json:"kind"`
	APIVersion string          `json:"apiVersion"`
	Metadata   metadata        `json:"metadata"`
	Spec       json.RawMessage `json:"spec"`
	Status     json.RawMessage `json:"status"`
	// Of a ServiceAccount.
	Secrets                      json.RawMessage `json:"secrets"`
	ImagePullSecrets             json.RawMessage `json:"imagePullSecrets"`
	AutomountServiceAccountToken json.RawMessage `json:"automountServiceAccountToken"`
}

func decodeManifest(doc []byte, kind string, namespaced bool) (*manifest, error) {
	m, err := api.DecodeForeign[manifest](doc, kind)
	if err != nil {
		return nil, err
	}
	var e api.FieldErrors
	m.Metadata.validate(&e, kind, namespaced)
	return m, e.Err()
}

// namespace makes the profile kns.<name>, which allows everything.
func namespace(doc []byte) (api.Object, error) {
	m, err := decodeManifest(doc, "Namespace", false)
	if err != nil {
		return nil, err
	}
	return namespaceOf(m.Metadata), nil
}

func namespaceOf(m metadata) *api.Profile {
	p := &api.Profile{Spec: api.ProfileSpec{
		Ingress:       []api.Rule{{Action: api.ActionAllow}},
		Egress:        []api.Rule{{Action: api.ActionAllow}},
		LabelsToApply: inherited(namespacePrefix, m),
	}}
	p.Name, p.UID = namespaceProfile+m.Name, m.uid()
	return p
}

// serviceAccount makes the profile ksa.<namespace>.<name>, which has labels only.
func (opts Options) serviceAccount(doc []byte) (api.Object, error) {
	m, err := decodeManifest(doc, "ServiceAccount", true)
	if err != nil {
		return nil, err
	}
	m.Metadata.Namespace = cmp.Or(m.Metadata.Namespace, opts.Namespace, defaultNamespace)
	return serviceAccountOf(m.Metadata), nil
}

func serviceAccountOf(m metadata) *api.Profile {
	p := &api.Profile{Spec: api.ProfileSpec{LabelsToApply: inherited(serviceAccountPrefix, m)}}
	p.Name, p.UID = serviceAccountProfile+m.Namespace+"."+m.Name, m.uid()
	return p
}

// BareProfile is the profile of a namespace (kns.<name>) or of a service account
// (ksa.<namespace>.<name>) of which nothing but the name is known: what
// converting it would give if it had no labels. Of another name it is nil. A
// namespace's name has no dot.
func BareProfile(name string) *api.Profile {
	var p *api.Profile
	if ns, ok := strings.CutPrefix(name, namespaceProfile); ok && ns != "" {
		p = namespaceOf(metadata{Name: ns})
	} else if rest, ok := strings.CutPrefix(name, serviceAccountProfile); ok {
		if ns, sa, both := strings.Cut(rest, "."); both && ns != "" && sa != "" {
			p = serviceAccountOf(metadata{Namespace: ns, Name: sa})
		}
	}
	if p != nil {
		p.Default()
	}
	return p
}

// inherited are the labels that endpoints get: those of the object, with the
// prefix, and its name, if that can be the value of a label.
func inherited(prefix string, m metadata) map[string]string {
	labels := make(map[string]string, len(m.Labels)+1)
	for k, v := range m.Labels {
		labels[prefix+k] = v
	}
	if len(m.Name) <= maxLabelValue {
		labels[prefix+nameLabel] = m.Name
	}
	return labels
}
