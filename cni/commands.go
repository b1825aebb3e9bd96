package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manekinet/maneki/cni/wire"
	"github.com/manekinet/maneki/endpoint"
)

// answer executes a request and sends the answer.
func (s *Server) answer(ctx context.Context, conn *net.UnixConn, w *watcher, req wire.Request, netns *os.File) {
	c, err := parseCall(req)
	if err == nil {
		err = allowedIn(req.Command, c.conf.CNIVersion)
	}
	if err == nil && req.Command == "ADD" {
		s.add(ctx, conn, w, c, netns)
		return
	}
	if err == nil {
		err = s.execute(ctx, c, netns)
	}
	r := &wire.Response{}
	if err != nil {
		s.Log.Warn("CNI request failed", "command", req.Command, "container", req.ContainerID, "err", err)
		r.Error = toError(err)
	}
	s.send(conn, r)
}

// allowedIn refuses a command that the configuration's version does not have. The CNI library in the executable does
// so as well.
func allowedIn(command, confVersion string) error {
	since := map[string]string{"ADD": "0.1.0", "DEL": "0.1.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]
	if since == "" {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown CNI_COMMAND: %q", command), "")
	}
	if ok, err := version.GreaterThanOrEqualTo(confVersion, since); err != nil || !ok {
		return types.NewError(types.ErrIncompatibleCNIVersion, "config version does not allow "+command,
			fmt.Sprintf("%s came with CNI %s, the configuration says %s", command, since, confVersion))
	}
	return nil
}

// execute does a command that has no result.
func (s *Server) execute(ctx context.Context, c *call, netns *os.File) error {
	switch c.Command {
	case "DEL":
		return s.Endpoints.Detach(ctx, c.id())
	case "CHECK":
		want, err := previousAddresses(c.conf, c.IfName)
		if err != nil {
			return err
		}
		return s.Endpoints.Check(ctx, c.id(), netns, want)
	case "GC":
		var keep []endpoint.Attachment
		for _, a := range c.conf.ValidAttachments {
			keep = append(keep, endpoint.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
		return s.Endpoints.GC(ctx, c.conf.Name, keep)
	}
	if err := s.Endpoints.CheckReady(ctx); err != nil { // STATUS
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "see 'maneki node status'")
	}
	return nil
}

// add executes ADD and makes sure that somebody knows of what it made.
func (s *Server) add(ctx context.Context, conn *net.UnixConn, w *watcher, c *call, netns *os.File) {
	result, body, err := s.attach(ctx, c, netns)
	if err != nil {
		s.Log.Warn("CNI request failed", "command", "ADD", "container", c.ContainerID, "err", err)
		s.send(conn, &wire.Response{Error: toError(err)})
		return
	}
	if s.send(conn, &wire.Response{Result: body}) && w.wait() {
		return
	}
	if !result.Created {
		return // it was there before this request, and somebody knows of it
	}
	s.Log.Warn("nobody took the result of ADD: undo it", "container", c.ContainerID, "network", c.conf.Name)
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if err := s.Endpoints.Detach(undoCtx, c.id()); err != nil {
		s.Log.Error("undo ADD", "container", c.ContainerID, "err", err)
	}
}

func (s *Server) attach(ctx context.Context, c *call, netns *os.File) (endpoint.Result, []byte, error) {
	if netns == nil {
		return endpoint.Result{}, nil, types.NewError(types.ErrInvalidNetNS, "no network namespace was passed on", "")
	}
	spec, err := c.spec(netns)
	if err != nil {
		return endpoint.Result{}, nil, err
	}
	r, err := s.Endpoints.Attach(ctx, spec)
	if err != nil {
		return endpoint.Result{}, nil, err
	}
	body, err := encodeResult(r, c.Netns, c.conf.CNIVersion, c.conf.DNS)
	if err != nil && r.Created {
		err = errors.Join(err, s.Endpoints.Detach(ctx, spec.ID))
	}
	return r, body, err
}
