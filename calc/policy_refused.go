package calc

import (
	"fmt"
	"maps"

	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
)

// Refusal is an object of the packet filter that the kernel would not take.
type Refusal struct {
	Key desired.NFTKey
	Why string
}

// refusal is a policy that denies because the kernel would not take what it was rendered to.
type refusal struct{ original, denies *policy.Policy }

// refuse makes the policies deny whose objects the kernel refused: they fail closed, and the rest of the change goes in.
// Where the object is of no policy in particular, it can only be one of an index, without which everything can be asked
// just as well.
func (c *Core) refuse(list []Refusal) {
	found := false
	for _, r := range list {
		for _, id := range c.enforced.owners(r.Key) {
			found = true
			c.policies.refusing[id] = fmt.Sprintf("the kernel refuses %s: %s", r.Key, r.Why)
		}
	}
	if !found && len(list) > 0 {
		c.enforced.withoutIndexes()
	}
}

// withRefused puts denying policies into the place of those that the kernel refused. One that has changed since is tried
// again, and with again all are.
func (p *policies) withRefused(m map[policy.ID]*policy.Policy) map[policy.ID]*policy.Policy {
	again := p.tryAgain
	p.tryAgain = false
	if len(p.refused)+len(p.refusing) == 0 {
		return m
	}
	out := maps.Clone(m)
	for id, r := range p.refused {
		switch {
		case out[id] != r.denies:
			delete(p.refused, id)
		case again:
			out[id] = r.original
			delete(p.refused, id)
		}
	}
	for id, why := range p.refusing {
		if pol := out[id]; pol != nil && pol.Broken == "" {
			r := &refusal{original: pol, denies: &policy.Policy{ID: id, Tier: pol.Tier, Staged: pol.Staged, Broken: why}}
			p.refused[id], out[id] = r, r.denies
		}
	}
	clear(p.refusing)
	if maps.Equal(out, m) {
		return m
	}
	return out
}

func (p *policies) reportRefused(probs *problems) {
	for id, r := range p.refused {
		probs.add("%s", brokenText(id, false, r.denies.Broken))
	}
}
