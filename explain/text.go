package explain

import (
	"fmt"
	"strings"

	"github.com/manekinet/maneki/policy"
)

// maxSteps bounds the rules printed of one stage; the ones nearest to the
// decision are kept.
const maxSteps = 40

// Text is an answer for people: a headline, the stages with what each looked
// at, and the change that would turn it.
func (a Answer) Text(n Network) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s, %s: %s\n", a.From.text(), a.To.text(), portText(a.Packet), word(a.Allowed))
	for i := range a.Stages {
		a.Stages[i].write(&b, i+1, n)
	}
	if len(a.Stages) == 0 {
		b.WriteString("\nNo policy is asked on this way.\n")
	}
	if a.Change != nil {
		fmt.Fprintf(&b, "\nIt would be %s: %s.\n", word(!a.Allowed), a.Change.Text)
	}
	return b.String()
}

func word(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

func (p Party) text() string {
	switch p.Kind {
	case Workload:
		return fmt.Sprintf("%s (%s on %s)", p.Name, p.Addr, p.Node)
	case Host:
		return fmt.Sprintf("host %s (%s)", p.Node, p.Addr)
	}
	return p.Addr.String()
}

func portText(p policy.Packet) string {
	switch {
	case policy.HasPorts(p.Protocol):
		return fmt.Sprintf("%s port %d", policy.ProtocolName(p.Protocol), p.DstPort)
	case p.Protocol == policy.ProtoICMP || p.Protocol == policy.ProtoICMPv6:
		return fmt.Sprintf("%s type %d", policy.ProtocolName(p.Protocol), p.Type)
	}
	return policy.ProtocolName(p.Protocol)
}

func (st *Stage) write(b *strings.Builder, number int, n Network) {
	fmt.Fprintf(b, "\n%d. %s: %s\n", number, st.Title, word(st.Allowed))
	if st.Trace == nil {
		fmt.Fprintf(b, "   %s\n", st.Note)
		return
	}
	s := n.Hosts[st.Node]
	steps := st.Trace.Steps
	if left := len(steps) - maxSteps; left > 0 {
		fmt.Fprintf(b, "   (%d rules before these did not match)\n", left)
		steps = steps[left:]
	}
	tier, policyName := "", ""
	for _, step := range steps {
		if step.Tier != tier {
			fmt.Fprintf(b, "   tier %s\n", step.Tier)
			tier = step.Tier
		}
		if name := stepName(step); name != policyName {
			fmt.Fprintf(b, "     %s\n", name)
			policyName = name
		}
		writeStep(b, step)
	}
	fmt.Fprintf(b, "   => %s: %s\n", word(st.Allowed), Because(s, st.Trace))
	if staged := st.Trace.Staged; staged != nil && staged.Allowed != st.Allowed {
		fmt.Fprintf(b, "   If the staged policies were in force: %s: %s\n", word(staged.Allowed), Because(s, staged))
	}
}

func stepName(step policy.Step) string {
	if step.Staged {
		return step.Policy.String() + " (staged: decides nothing)"
	}
	return step.Policy.String()
}

func stepLine(step policy.Step) string {
	if step.Rule == nil {
		return "cannot be enforced as it is written"
	}
	if len(step.Misses) == 0 {
		return fmt.Sprintf("rule %d: %s", step.Rule.Index+1, step.Rule.Text)
	}
	texts := make([]string, len(step.Misses))
	for i, m := range step.Misses {
		texts[i] = m.Text
	}
	return fmt.Sprintf("rule %d: %s - no match: %s", step.Rule.Index+1, step.Rule.Text, strings.Join(texts, "; "))
}

func writeStep(b *strings.Builder, step policy.Step) {
	mark := " "
	if len(step.Misses) == 0 {
		mark = "*"
	}
	fmt.Fprintf(b, "     %s %s\n", mark, stepLine(step))
}
