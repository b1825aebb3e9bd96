package calc

import (
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// packetFilter is the packet filter of the last policy state.
type packetFilter struct {
	renderer *render.Renderer
	state    *policy.State
	rendered desired.NFT
	labels   policy.Labels
}

// of renders a state, unless it is the last one still, and returns what the
// labels of its rules stand for.
func (f *packetFilter) of(s *policy.State, remote bool) policy.Labels {
	if remote || s == f.state {
		return f.labels
	}
	if f.renderer == nil {
		f.renderer = render.New(render.Options{ReportGroup: policy.ReportGroup})
	}
	r := f.renderer.Render(s)
	f.state, f.rendered, f.labels = s, r.NFT, r.Labels
	return f.labels
}
