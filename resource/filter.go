package resource

import (
	"context"
	"errors"
	"fmt"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

// checkFilters refuses a BGP peer that names a filter that is not there: its
// sessions would exchange more than their writer wanted.
func (c *Client) checkFilters(ctx context.Context, p *api.BGPPeer) error {
	var wrong api.FieldErrors
	for i, name := range p.Spec.Filters {
		_, err := c.store.Get(ctx, datastore.Key{Kind: "BGPFilter", Name: name})
		if errors.Is(err, ErrNotExist) {
			wrong.Add(fmt.Sprintf("BGPPeer.Spec.Filters[%d]", i), name, "the BGPFilter does not exist; create it first")
		} else if err != nil {
			return err
		}
	}
	return wrong.Err()
}
