package docker_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// published is the endpoint's ports in short.
func (r *rig) published() string {
	r.Helper()
	var out []string
	for _, p := range r.endpoint().Spec.Ports {
		out = append(out, fmt.Sprintf("%s %s:%d->%d %s", p.Protocol.String(), p.HostIP, p.HostPort, p.Port, p.Name))
	}
	return strings.Join(out, ", ")
}

func (r *rig) publish(endpoint, ports string) string {
	r.Helper()
	return r.post("NetworkDriver.ProgramExternalConnectivity", fmt.Sprintf(
		`{"NetworkID":%q,"EndpointID":%q,"Options":{"com.docker.network.endpoint.exposedports":[],"com.docker.network.portmap":[%s]}}`, networkID, endpoint, ports))
}

func TestPublish(t *testing.T) {
	r := newRig(t)
	addrs := r.create()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	for _, bad := range []struct{ binding, want string }{
		{`{"Proto":1,"Port":80,"HostPort":60123,"HostPortEnd":60123}`, "protocol 1 is not TCP (6), UDP (17) or SCTP (132)"},
		{`{"Proto":6,"Port":80,"HostIP":"nowhere","HostPort":60123}`, `host address \"nowhere\" is not an IP address`},
		{`{"Proto":6,"Port":80,"HostIP":"192.0.2.77","HostPort":60123}`, "192.0.2.77 is no address of this host"},
		{`{"Proto":6,"Port":80,"HostIP":"::1","HostPort":60123}`, "the kernel never forwards what is sent to ::1"},
		{fmt.Sprintf(`{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":%d,"HostPortEnd":%d}`, port, port), fmt.Sprintf("port %d is in use by a process of this host", port)},
		{fmt.Sprintf(`{"Proto":6,"Port":80,"HostPort":%d}`, port), "is in use by a process"},
	} {
		if got := r.publish(endpointID, bad.binding); !strings.Contains(got, bad.want) {
			t.Errorf("%s: %s", bad.binding, got)
		}
		if got := r.published(); got != "" {
			t.Errorf("%s: published %s", bad.binding, got)
		}
	}
	got := r.publish(endpointID, `{"Proto":6,"Port":80,"HostPort":60123,"HostPortEnd":60123},{"Proto":17,"Port":53,"HostIP":"127.0.0.1","HostPort":60123,"HostPortEnd":60130},
		{"Proto":132,"Port":9,"HostIP":"0.0.0.0","HostPort":60123,"HostPortEnd":60123},{"Proto":6,"Port":81,"HostPort":60123,"HostPortEnd":60125},{"Proto":6,"Port":82,"HostPort":0,"HostPortEnd":0}`)
	const want = "TCP :60123->80 docker-published, UDP 127.0.0.1:60123->53 docker-published, SCTP 0.0.0.0:60123->9 docker-published, " +
		"TCP :60124->81 docker-published, TCP :49153->82 docker-published"
	if r.published() != want {
		t.Errorf("%s: published %s", got, r.published())
	}

	if got := strings.Join(r.endpoint().Spec.Profiles, " "); got != "docker-4945f04f433a docker-published" {
		t.Errorf("profiles %s", got)
	}

	// The next container.
	const other = "2222222222222222"
	a := call[struct{ Address string }](r, "IpamDriver.RequestAddress", `{"PoolID":"CalicoPoolIPv4","Address":"","Options":null}`)
	call[struct{}](r, "NetworkDriver.CreateEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q}}`, networkID, other, a.Address))
	if got := r.publish(other, `{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":60123,"HostPortEnd":60123}`); !strings.Contains(got, "port 60123 is already published by another container") {
		t.Error(got)
	}
	if got := r.publish(other, `{"Proto":6,"Port":80,"HostPort":60123,"HostPortEnd":60124}`); !strings.Contains(got, "all of 60123-60124 are taken") {
		t.Error(got)
	}
	call[struct{}](r, "NetworkDriver.RevokeExternalConnectivity", both)
	if got := r.published(); got != "" || len(r.endpoint().Spec.Profiles) != 1 {
		t.Errorf("after it was revoked: %s, profiles %v", got, r.endpoint().Spec.Profiles)
	}
	if got := r.publish(other, `{"Proto":6,"Port":80,"HostPort":60123,"HostPortEnd":60124}`); got != "{}" {
		t.Error(got)
	}
	call[struct{}](r, "NetworkDriver.RevokeExternalConnectivity", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":"3333333333333333"}`, networkID))
	call[struct{}](r, "NetworkDriver.DeleteEndpoint", fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q}`, networkID, other))
	r.remove(append(addrs, a.Address))
	r.wantNothingLeft()
}
