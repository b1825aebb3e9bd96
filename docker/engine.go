package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// engine asks Docker's own API for what it does not tell its drivers.
type engine struct{ client *http.Client }

// How long Docker may take for one answer. While dockerd starts, its API accepts connections and does not answer.
const (
	engineTime     = 5 * time.Second
	membershipTime = time.Second // of a container that Docker may be at work on
)

// maxAnswer bounds an answer; a host with thousands of containers has a few MB.
const maxAnswer = 64 << 20

func newEngine(socket string) *engine {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &engine{client: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// get reads a JSON answer. The path has no API version: dockerd then speaks its newest.
func get[T any](ctx context.Context, e *engine, path string) (answer T, err error) {
	ctx, cancel := context.WithTimeout(ctx, engineTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return answer, err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return answer, fmt.Errorf("ask Docker: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("ask Docker for %s: %s", path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("ask Docker for %s: %w", path, err)
	}
	return answer, nil
}

// dockerNetwork is the part of Docker's description of a network that is used.
type dockerNetwork struct {
	Name     string
	Internal bool
	Options  map[string]string // -o
	IPAM     struct{ Config []struct{ Subnet string } }
}

func (e *engine) network(ctx context.Context, id string) (dockerNetwork, error) {
	return get[dockerNetwork](ctx, e, "/networks/"+id)
}

// listed is the part of Docker's list of containers that is used.
type listed struct {
	container
	Names  []string
	State  string
	Labels map[string]string
}

// container is what the list and the description of one container have in common.
type container struct {
	ID              string `json:"Id"`
	NetworkSettings struct{ Networks map[string]membership }
}

// membership is a container's part in a network.
type membership struct {
	EndpointID, NetworkID string // empty before the container is started
	Aliases, DNSNames     []string
	DriverOpts            map[string]string
	IPAMConfig            *struct{ IPv4Address, IPv6Address string }
}

// containers are all containers of this host, running or not, or those of the networks given by name or ID.
func (e *engine) containers(ctx context.Context, networks ...string) ([]listed, error) {
	path := "/containers/json?all=1"
	if len(networks) > 0 {
		filter, err := json.Marshal(map[string][]string{"network": networks})
		if err != nil {
			return nil, err
		}
		path += "&filters=" + url.QueryEscape(string(filter))
	}
	return get[[]listed](ctx, e, path)
}

// container is one container of this host by its ID, running or not.
func (e *engine) container(ctx context.Context, id string) (listed, error) {
	filter, err := json.Marshal(map[string][]string{"id": {id}})
	if err != nil {
		return listed{}, err
	}
	all, err := get[[]listed](ctx, e, "/containers/json?all=1&filters="+url.QueryEscape(string(filter)))
	for _, c := range all {
		if c.ID == id {
			return c, nil
		}
	}
	return listed{}, errors.Join(errNoContainer, err)
}

// starts calls open when Docker tells of containers that start, and then started after each. It returns when the stream
// ends, or ctx does. Docker's list shows a container as running before it tells.
func (e *engine) starts(ctx context.Context, open, started func()) error {
	const filter = `{"type":["container"],"event":["start"]}`
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/events?filters="+url.QueryEscape(filter), nil)
	if err != nil {
		return err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return fmt.Errorf("follow Docker's events: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("follow Docker's events: %s", resp.Status)
	}
	open()
	for events := json.NewDecoder(resp.Body); ; {
		if err := events.Decode(&struct{}{}); err != nil {
			return fmt.Errorf("follow Docker's events: %w", err)
		}
		started()
	}
}

// membership describes a container's part in the network of an endpoint.
func (e *engine) membership(ctx context.Context, id, endpointID string) (membership, error) {
	ctx, cancel := context.WithTimeout(ctx, membershipTime)
	defer cancel()
	c, err := get[container](ctx, e, "/containers/"+id+"/json")
	for _, n := range c.NetworkSettings.Networks {
		if n.EndpointID == endpointID {
			return n, err
		}
	}
	return membership{}, err
}

// busy reports that Docker is at work on a container: it does not describe it within the time. Docker locks a container
// while it starts, stops or connects it, and describing it takes the same lock.
func (e *engine) busy(ctx context.Context, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := get[struct{}](ctx, e, "/containers/"+id+"/json")
	return errors.Is(err, context.DeadlineExceeded)
}

// hasClusterStore reports whether the dockerd with the process ID keeps its networks in a cluster store: by its
// command line, or its configuration file. Its API could not be asked: dockerd wants to know the scope while it starts.
func hasClusterStore(pid int) bool {
	if pid <= 0 {
		return false
	}
	root := fmt.Sprintf("/proc/%d", pid)
	line, err := os.ReadFile(root + "/cmdline")
	if err != nil {
		return false
	}
	file := "/etc/docker/daemon.json"
	args := strings.Split(string(line), "\x00")
	for i, a := range args {
		if strings.HasPrefix(a, "--cluster-store=") || a == "--cluster-store" {
			return true
		}
		if v, ok := strings.CutPrefix(a, "--config-file="); ok {
			file = v
		} else if a == "--config-file" && i+1 < len(args) {
			file = args[i+1]
		}
	}
	f, err := os.Open(root + "/root/" + file)
	if err != nil {
		return false
	}
	defer f.Close()
	var conf struct {
		ClusterStore string `json:"cluster-store"`
	}
	return json.NewDecoder(io.LimitReader(f, maxBody)).Decode(&conf) == nil && conf.ClusterStore != ""
}
