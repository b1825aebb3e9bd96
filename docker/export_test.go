package docker

import (
	"context"
	"errors"
	"time"
)

// CollectBefore is one round of collect with a time of the test's choice.
func (s *Server) CollectBefore(ctx context.Context, before time.Time) error {
	return errors.Join(s.collectPorts(ctx, before), s.collectAddresses(ctx, before))
}

// ProfileName is profileName.
func ProfileName(s string) string { return profileName(s) }
