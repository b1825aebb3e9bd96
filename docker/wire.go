package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// contentType is what dockerd accepts.
const contentType = "application/vnd.docker.plugins.v1.2+json"

// maxBody bounds one request; the largest is a CreateNetwork with its options.
const maxBody = 1 << 20

// The messages, field by field as dockerd 20.10 sends and reads them (spec/docker-kubernetes.md §1.3). Fields that are
// not used here are left out.

type none struct{}

type activateAnswer struct{ Implements []string }

type networkCapabilities struct{ Scope, ConnectivityScope Scope }

type ipamCapabilities struct{ RequiresMACAddress bool }

type addressSpaces struct{ LocalDefaultAddressSpace, GlobalDefaultAddressSpace string }

type poolRequest struct {
	AddressSpace, Pool, SubPool string
	Options                     map[string]string
	V6                          bool
}

type poolAnswer struct {
	PoolID, Pool string
	Data         map[string]string
}

type addressRequest struct {
	PoolID, Address string
	Options         map[string]string
}

type addressAnswer struct {
	Address string
	Data    map[string]string
}

type addressRef struct{ PoolID, Address string }

type ipamData struct {
	AddressSpace, Gateway, Pool string
	AuxAddresses                map[string]string
}

type networkRequest struct {
	NetworkID          string
	Options            map[string]json.RawMessage
	IPv4Data, IPv6Data []ipamData
}

type networkRef struct{ NetworkID string }

type endpointRef struct{ NetworkID, EndpointID string }

type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

type endpointRequest struct {
	NetworkID, EndpointID string
	Interface             *endpointInterface
	Options               map[string]json.RawMessage
}

type endpointAnswer struct{ Interface endpointInterface }

type joinRequest struct{ NetworkID, EndpointID, SandboxKey string }

type interfaceName struct{ SrcName, DstPrefix string }

type staticRoute struct {
	Destination string
	RouteType   int // routeOnLink
	NextHop     string
}

// routeOnLink is libnetwork's types.CONNECTED.
const routeOnLink = 1

type joinAnswer struct {
	InterfaceName         interfaceName
	Gateway               string        `json:",omitempty"`
	GatewayIPv6           string        `json:",omitempty"`
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool
}

type operInfo struct{ Value map[string]string }

// failure is an answer that is an error. The network driver's client reads Err, the IPAM driver's reads Error.
type failure struct{ Err, Error string }

// call is a handler of one method.
type call struct {
	run   func(ctx context.Context, body io.Reader) (answer json.Marshaler, err error)
	early bool // answered before Open
}

// errRepeated is what a request without its content gets. dockerd repeats a call during which the connection broke, and
// by then has sent its content (Docker 20.10: pkg/plugins, callWithRetry).
var errRepeated = errors.New("the agent was restarted while Docker talked to it, and Docker repeats such a call without its content: try again")

// encoded is an answer that is JSON already.
type encoded []byte

// MarshalJSON returns the text.
func (e encoded) MarshalJSON() ([]byte, error) { return e, nil }

// method makes a call of a function of typed messages.
func method[Q, A any](f func(ctx context.Context, q Q) (A, error)) call {
	return call{run: func(ctx context.Context, body io.Reader) (json.Marshaler, error) {
		var q Q
		err := json.NewDecoder(body).Decode(&q)
		if errors.Is(err, io.EOF) {
			err = errRepeated
		}
		if err != nil {
			return nil, fmt.Errorf("read request: %w", err)
		}
		return encode(f(ctx, q))
	}}
}

// early makes a call whose content is not looked at and that needs nothing of the agent.
func early[A any](f func(ctx context.Context) (A, error)) call {
	return call{early: true, run: func(ctx context.Context, _ io.Reader) (json.Marshaler, error) { return encode(f(ctx)) }}
}

// fixed is a call whose answer never changes.
func fixed[A any](a A) call {
	return early(func(context.Context) (A, error) { return a, nil })
}

func encode[A any](a A, err error) (json.Marshaler, error) {
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(a)
	return encoded(text), err
}

// handler serves the methods of one driver.
func (s *Server) handler(kind string) http.Handler {
	calls := s.networkCalls()
	if kind == ipamDriver {
		calls = s.ipamCalls()
	}
	calls["Plugin.Activate"] = fixed(activateAnswer{Implements: []string{kind}})
	mux := http.NewServeMux()
	for name, c := range calls {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, name, c) })
	}
	return mux
}

// answer executes a call. It goes on when dockerd hangs up: what was begun is finished or undone.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, name string, c call) {
	ctx := context.WithoutCancel(r.Context())
	start := time.Now()
	a, err := s.run(ctx, c, http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.Log.Warn("Docker request failed", "method", name, "err", err)
		text, _ := json.Marshal(failure{Err: err.Error(), Error: err.Error()})
		a = encoded(text)
	}
	text, _ := a.MarshalJSON()
	s.Log.Debug("Docker request", "method", name, "took", time.Since(start))
	w.Header().Set("Content-Type", contentType)
	if _, err := w.Write(append(text, '\n')); err != nil {
		s.Log.Warn("Docker answer not delivered", "method", name, "err", err)
	}
}

func (s *Server) run(ctx context.Context, c call, body io.Reader) (json.Marshaler, error) {
	if !c.early {
		select {
		case <-s.opened:
		case <-s.life.Done():
			return nil, errors.New("the agent of this host is being stopped")
		case <-time.After(startTime):
			return nil, fmt.Errorf("the agent of this host has not got ready within %s: see its log; its datastore may not answer", startTime)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	return c.run(ctx, body)
}

// externalRequest has a port map when ports are published.
type externalRequest struct {
	NetworkID, EndpointID string
	Options               struct {
		PortMap []portBinding `json:"com.docker.network.portmap"`
	}
}

// portBinding is one port to be published: Port of the container at HostPort, or the first free one up to HostPortEnd, or
// any when that is 0.
type portBinding struct {
	Proto                       int // IP protocol number
	Port, HostPort, HostPortEnd uint16
	HostIP                      string // empty or unspecified: any
}
