package endpoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// PublishedPorts is the name of the profile, and of the ports in it, that lets everybody in to published ports: who
// publishes a port wants it reached. It is the last of an endpoint's profiles, and policies come before profiles.
const PublishedPorts = "docker-published"

// annotationInternal marks the profile of a network from which there is no way out.
const annotationInternal = "maneki.net/docker-internal"

// ensurePortProfile creates the profile of a port's network, or checks that the network is what the port takes it for:
// of an internal one it is the profile that keeps its containers in.
func (m *Manager) ensurePortProfile(ctx context.Context, p *Port) error {
	have, err := m.profiles.Get(ctx, "", p.Network)
	if errors.Is(err, datastore.ErrNotFound) {
		return m.ensureProfile(ctx, portProfile(p.Network, p.Internal))
	}
	if err != nil {
		return err
	}
	if internal := have.Annotations[annotationInternal] == "true"; internal != p.Internal {
		return fmt.Errorf("%w: %w", ErrInvalid, &FieldError{"network", p.Network, map[bool]string{
			true:  "it is internal in this cluster; create it with --internal, or give it another name",
			false: "it is not internal in this cluster; create it without --internal, or give it another name",
		}[internal]})
	}
	return nil
}

// portProfile is that of a network, or of an internal one: in and out only between its members, and to the name server.
func portProfile(network string, internal bool) *api.Profile {
	p := networkProfile(network, admitMembers)
	if !internal {
		return p
	}
	p.Annotations = map[string]string{annotationInternal: "true"}
	p.Spec.Egress = []api.Rule{{Action: api.ActionAllow, Destination: api.EntityRule{Selector: "has(" + network + ")"}}}
	for _, proto := range []string{"UDP", "TCP"} {
		name := api.FromText(proto)
		p.Spec.Egress = append(p.Spec.Egress, api.Rule{
			Action: api.ActionAllow, Protocol: &name, Destination: api.EntityRule{Nets: []string{gateway4.String() + "/32"}, Ports: []api.IntOrString{api.FromInt(53)}},
		})
	}
	return p
}

func publishedProfile() *api.Profile {
	p := &api.Profile{}
	for _, proto := range []string{"TCP", "UDP", "SCTP"} {
		name := api.FromText(proto)
		p.Spec.Ingress = append(p.Spec.Ingress, api.Rule{
			Action: api.ActionAllow, Protocol: &name, Destination: api.EntityRule{Ports: []api.IntOrString{api.FromText(PublishedPorts)}},
		})
	}
	p.Name = PublishedPorts
	p.Default()
	return p
}
