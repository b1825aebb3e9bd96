package explain

import (
	"net/netip"

	"github.com/manekinet/maneki/policy"
)

// Document is an answer for programs: `maneki explain -o json`.
type Document struct {
	From    PartyDocument   `json:"from"`
	To      PartyDocument   `json:"to"`
	Packet  PacketDocument  `json:"packet"`
	Allowed bool            `json:"allowed"`
	Stages  []StageDocument `json:"stages"`
	Change  string          `json:"change,omitempty"` // what would turn it
}

// PartyDocument is one end.
type PartyDocument struct {
	Kind    string     `json:"kind"` // workload, host or outside
	Name    string     `json:"name"`
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address"`
}

// PacketDocument is a packet.
type PacketDocument struct {
	Source          netip.Addr `json:"source"`
	Destination     netip.Addr `json:"destination"`
	Protocol        uint8      `json:"protocol"`
	SourcePort      uint16     `json:"sourcePort,omitempty"`
	DestinationPort uint16     `json:"destinationPort,omitempty"`
	Type            uint8      `json:"icmpType,omitempty"`
	Code            uint8      `json:"icmpCode,omitempty"`
}

// StageDocument is one place on the way.
type StageDocument struct {
	Node    string         `json:"node"`
	Title   string         `json:"title"`
	Allowed bool           `json:"allowed"`
	Because string         `json:"because"`
	Tier    string         `json:"tier,omitempty"`
	Policy  string         `json:"policy,omitempty"`
	Rule    *int           `json:"rule,omitempty"` // counted from 0
	Steps   []StepDocument `json:"steps,omitempty"`
	Staged  *bool          `json:"allowedIfStagedWereEnforced,omitempty"`
}

// StepDocument is one rule that was looked at.
type StepDocument struct {
	Tier    string   `json:"tier,omitempty"`
	Policy  string   `json:"policy"`
	Staged  bool     `json:"staged,omitempty"`
	Rule    int      `json:"rule"`
	Text    string   `json:"text"`
	Matched bool     `json:"matched"`
	Misses  []string `json:"misses,omitempty"`
}

// Document returns the answer as a document.
func (a Answer) Document(n Network) Document {
	p := a.Packet
	d := Document{
		From: partyDocument(a.From), To: partyDocument(a.To), Allowed: a.Allowed, Stages: []StageDocument{},
		Packet: PacketDocument{Source: p.Src, Destination: p.Dst, Protocol: p.Protocol, SourcePort: p.SrcPort, DestinationPort: p.DstPort, Type: p.Type, Code: p.Code},
	}
	if a.Change != nil {
		d.Change = a.Change.Text
	}
	for i := range a.Stages {
		d.Stages = append(d.Stages, stageDocument(&a.Stages[i], n))
	}
	return d
}

func partyDocument(p Party) PartyDocument {
	kind := map[Kind]string{Workload: "workload", Host: "host", Outside: "outside"}[p.Kind]
	return PartyDocument{Kind: kind, Name: p.Name, Node: p.Node, Address: p.Addr}
}

func stageDocument(st *Stage, n Network) StageDocument {
	d := StageDocument{Node: st.Node, Title: st.Title, Allowed: st.Allowed, Because: st.Note}
	t := st.Trace
	if t == nil {
		return d
	}
	d.Because, d.Tier = Because(n.Hosts[st.Node], t), t.Verdict.Tier
	if t.Verdict.Policy != (policy.ID{}) {
		d.Policy = t.Verdict.Policy.String()
	}
	if t.Verdict.Reason == policy.ByRule {
		d.Rule = &t.Verdict.Rule
	}
	if t.Staged != nil {
		d.Staged = &t.Staged.Allowed
	}
	for _, step := range t.Steps {
		s := StepDocument{Tier: step.Tier, Policy: step.Policy.String(), Staged: step.Staged, Rule: -1, Matched: len(step.Misses) == 0}
		if step.Rule != nil {
			s.Rule, s.Text = step.Rule.Index, step.Rule.Text
		}
		for _, m := range step.Misses {
			s.Misses = append(s.Misses, m.Text)
		}
		d.Steps = append(d.Steps, s)
	}
	return d
}
