package agentapi

import (
	"context"
	"net/netip"
)

// PolicyCount is how much policy a host enforces, a part of Status. The counts are
// of what was computed from the datastore; Applied says whether the kernel has it.
type PolicyCount struct {
	Applied bool   `json:"applied"`         // the whole packet filter is in the kernel as computed
	Pending int    `json:"pending"`         // chains and sets that are not, or are still there and should not be
	Error   string `json:"error,omitempty"` // why, where an attempt has failed

	Endpoints     int `json:"endpoints"` // workloads
	HostEndpoints int `json:"hostEndpoints"`
	Policies      int `json:"policies"` // that select one of them, staged ones included
	Staged        int `json:"staged"`
	Profiles      int `json:"profiles"`
	Broken        int `json:"broken"` // of policies and profiles: those that cannot be enforced as written and deny
	Rules         int `json:"rules"`
	Sets          int `json:"sets"`
	Members       int `json:"members"` // of all sets
}

// Policy is the document at /v1/policy: network policy as this host has compiled
// it. Names of policies are "Kind(name)" or "Kind(namespace/name)".
type Policy struct {
	Node      string           `json:"node"`
	Endpoints []PolicyEndpoint `json:"endpoints"`
	Policies  []CompiledPolicy `json:"policies"`
	Sets      []PolicySet      `json:"sets"`
}

// PolicyEndpoint is an endpoint with what applies to it, in order.
type PolicyEndpoint struct {
	Namespace string         `json:"namespace,omitempty"` // empty for a host endpoint
	Name      string         `json:"name"`
	Host      bool           `json:"host,omitempty"`
	Interface string         `json:"interface"`
	Addresses []netip.Addr   `json:"addresses"`
	Tiers     []EndpointTier `json:"tiers"`
	Profiles  []string       `json:"profiles"`
}

// EndpointTier is a tier in one direction of one hook.
type EndpointTier struct {
	Hook      string   `json:"hook"`      // untracked, pre-DNAT, forward, normal
	Direction string   `json:"direction"` // ingress, egress
	Tier      string   `json:"tier"`
	Policies  []string `json:"policies"`
	EndDeny   bool     `json:"endDeny"` // what none of them decided is denied
}

// CompiledPolicy is a policy or profile.
type CompiledPolicy struct {
	Name    string         `json:"name"`
	Tier    string         `json:"tier,omitempty"`
	Staged  bool           `json:"staged,omitempty"`
	Broken  string         `json:"broken,omitempty"` // why it cannot be enforced as written
	Ingress []CompiledRule `json:"ingress,omitempty"`
	Egress  []CompiledRule `json:"egress,omitempty"`
}

// CompiledRule is one rule.
type CompiledRule struct {
	Index    int    `json:"index"`
	Text     string `json:"text"`     // as its author wrote it
	Resolved string `json:"resolved"` // with sets in the place of selectors
}

// PolicySet is a set that rules refer to, without its members.
type PolicySet struct {
	ID       string `json:"id"`
	Selector string `json:"selector"`
	Size     int    `json:"size"`
}

// Policy asks the agent for the policy that it enforces.
func (c *Client) Policy(ctx context.Context) (*Policy, error) {
	var p Policy
	if err := get(ctx, c, "/v1/policy", &p); err != nil {
		return nil, err
	}
	return &p, nil
}
