package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// settingsQueries is everything that settings are made of.
func settingsQueries() []datastore.Query {
	return []datastore.Query{{Kind: "IPPool"}, {Kind: "IPReservation"}, {Kind: datastore.KindIPAMConfig}}
}

// readSettings reads pools, reservations and configuration.
func (c *Client) readSettings(ctx context.Context) (*settings, error) {
	if s, ok := c.store.(datastore.Snapshotter); ok {
		entries, _, err := s.Snapshot(ctx, settingsQueries()...)
		if err != nil {
			return nil, fmt.Errorf("read IPAM settings: %w", err)
		}
		return c.buildSettings(entries)
	}
	var all []datastore.Entry
	for _, q := range settingsQueries() {
		entries, _, err := c.store.List(ctx, q)
		if err != nil {
			return nil, fmt.Errorf("read IPAM settings: %w", err)
		}
		all = append(all, entries...)
	}
	return c.buildSettings(all)
}

// buildSettings decodes entries. A pool or reservation that cannot be read is
// reported and left out; a configuration that cannot be read is an error,
// because assigning without it might break strict affinity.
func (c *Client) buildSettings(entries []datastore.Entry) (*settings, error) {
	config, configRev := api.DefaultIPAMConfig(), datastore.Revision("")
	var pools []pool
	var reserved netipx.IPSetBuilder
	for _, e := range entries {
		switch e.Key.Kind {
		case "IPPool":
			p, err := c.decodePool(e)
			if err != nil {
				c.log.Warn("IPPool skipped", "key", e.Key, "err", err)
				continue
			}
			pools = append(pools, p)
		case "IPReservation":
			if err := addReservation(c.store, &reserved, e); err != nil {
				c.log.Warn("IPReservation skipped in part", "key", e.Key, "err", err)
			}
		case datastore.KindIPAMConfig:
			stored, err := datastore.DecodeJSON[api.IPAMConfig](e)
			if err != nil {
				return nil, err
			}
			config, configRev = stored, e.Rev
		}
	}
	set, err := reserved.IPSet()
	if err != nil {
		return nil, fmt.Errorf("read IPReservations: %w", err)
	}
	return newSettings(config, configRev, pools, set), nil
}

func (c *Client) decodePool(e datastore.Entry) (pool, error) {
	p, err := datastore.For[api.IPPool](c.store).Decode(e)
	if err != nil {
		return pool{}, err
	}
	return parsePool(p)
}

func addReservation(s datastore.Store, set *netipx.IPSetBuilder, e datastore.Entry) error {
	r, err := datastore.For[api.IPReservation](s).Decode(e)
	if err != nil {
		return err
	}
	var bad []error
	for _, text := range r.Spec.ReservedCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, addrErr := netip.ParseAddr(text)
			if addrErr != nil {
				bad = append(bad, err)
				continue
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		set.AddPrefix(p.Masked())
	}
	return errors.Join(bad...)
}

// configKey is where the cluster's IPAM configuration is stored.
func configKey() datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMConfig, Name: "default"}
}

// Config reads the cluster's IPAM configuration, or the defaults when none is
// stored.
func (c *Client) Config(ctx context.Context) (api.IPAMConfig, error) {
	cfg, _, err := datastore.GetJSON[api.IPAMConfig](ctx, c.store, configKey())
	if errors.Is(err, datastore.ErrNotFound) {
		return api.DefaultIPAMConfig(), nil
	}
	if err != nil {
		return api.IPAMConfig{}, fmt.Errorf("read IPAM configuration: %w", err)
	}
	return cfg, nil
}

// SetConfig checks and stores the cluster's IPAM configuration.
func (c *Client) SetConfig(ctx context.Context, cfg api.IPAMConfig) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	err := datastore.Update(ctx, c.store, configKey(), func(cur *api.IPAMConfig) (*api.IPAMConfig, error) {
		if cur != nil && cfg.Extra == nil {
			cfg.Extra = cur.Extra
		}
		return &cfg, nil
	})
	if err != nil {
		return fmt.Errorf("write IPAM configuration: %w", err)
	}
	return nil
}
