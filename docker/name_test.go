package docker_test

import (
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/docker"
)

// Whatever Docker calls a network, its profile can be stored, with the rules and labels that it gets.
func FuzzProfileName(f *testing.F) {
	for _, s := range []string{"calnet1", "My_Net", "", "___", "a.-b", "-", "a..b", "网络", "x.", "9", "a-.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := docker.ProfileName(s)
		p := &api.Profile{Spec: api.ProfileSpec{
			Ingress:       []api.Rule{{Action: api.ActionAllow, Source: api.EntityRule{Selector: "has(" + name + ")"}}},
			LabelsToApply: map[string]string{name: ""},
		}}
		p.Name = name
		p.Default()
		if err := p.Validate(); err != nil {
			t.Errorf("%q gives %q: %v", s, name, err)
		}
		if again := docker.ProfileName(name); again != name {
			t.Errorf("%q is not stable: %q", name, again)
		}
	})
}
