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
	rendered *render.Result
}

// owners are the policies that an object of the last filter belongs to.
func (f *packetFilter) owners(k desired.NFTKey) []policy.ID {
	if f.rendered == nil {
		return nil
	}
	return f.rendered.Owners(k)
}

// withoutIndexes renders everything without indexes from now on.
func (f *packetFilter) withoutIndexes() {
	if f.renderer != nil && f.renderer.WithoutIndexes() {
		f.rendered = nil
	}
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
