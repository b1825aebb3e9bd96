package calc

import (
	"github.com/manekinet/maneki/policy"
	"github.com/manekinet/maneki/policy/render"
)

// packetFilter is the packet filter of the last policy state.
type packetFilter struct {
	renderer *render.Renderer
	state    *policy.State
	rendered *render.Result
}

// of renders a state, unless it is the last one still. Of another host nothing
// is rendered: there is no kernel to be told.
func (f *packetFilter) of(s *policy.State, remote bool) *render.Result {
	if remote {
		return &render.Result{}
	}
	if f.renderer == nil {
		f.renderer = render.New(render.Options{ReportGroup: policy.ReportGroup})
	}
	if s != f.state || f.rendered == nil {
		r := f.renderer.Render(s)
		f.state, f.rendered = s, &r
	}
	return f.rendered
}
