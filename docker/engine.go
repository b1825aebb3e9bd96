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

// engineTime bounds one question. While dockerd starts, its API accepts connections and does not answer.
const engineTime = time.Second

// maxAnswer bounds an answer; a host with thousands of containers has a few MB.
const maxAnswer = 64 << 20

var errNoContainer = errors.New("no container has the endpoint yet")

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

// networkName is the name of a network.
func (e *engine) networkName(ctx context.Context, id string) (string, error) {
	n, err := get[struct{ Name string }](ctx, e, "/networks/"+id)
	return n.Name, err
}

// container is the part of Docker's list of containers that is used.
type container struct {
	ID              string `json:"Id"`
	Names           []string
	Labels          map[string]string
	NetworkSettings struct {
		Networks map[string]struct{ EndpointID string }
	}
}

// containerOf finds the container that an endpoint belongs to; errNoContainer until Docker shows it.
func (e *engine) containerOf(ctx context.Context, networkID, endpointID string) (container, error) {
	filter := url.QueryEscape(`{"network":["` + networkID + `"]}`)
	all, err := get[[]container](ctx, e, "/containers/json?filters="+filter)
	if err != nil {
		return container{}, err
	}
	for _, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			if n.EndpointID == endpointID {
				return c, nil
			}
		}
	}
	return container{}, errNoContainer
}

// endpoints are the IDs of all endpoints of this host's containers.
func (e *engine) endpoints(ctx context.Context) (map[string]bool, error) {
	all, err := get[[]container](ctx, e, "/containers/json?all=1")
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			ids[n.EndpointID] = true
		}
	}
	return ids, nil
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
