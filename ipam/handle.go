package ipam

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/manekinet/maneki/api"
)

// cleanHandle cuts a handle at the carriage return that old migrations left in
// some (spec/calico.md §3).
func cleanHandle(id string) string {
	id, _, _ = strings.Cut(id, "\r")
	return id
}

// handleOf is the clean handle of an attribute, empty when it has none.
func handleOf(a *api.IPAMAttribute) string { return cleanHandle(deref(a.HandleID)) }

// ownerAttribute is the attribute of an address held by handle.
func ownerAttribute(handle string, attrs map[string]string) api.IPAMAttribute {
	return api.IPAMAttribute{HandleID: &handle, Secondary: attrs}
}

// counts is a handle's number of addresses per block CIDR. It is never changed
// in place.
type counts map[string]int

func decodeHandle(id string, data []byte) (counts, error) {
	var h api.IPAMHandle
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, fmt.Errorf("decode handle %s: %w", id, err)
	}
	return h.Block, nil
}

func (c counts) encode() ([]byte, error) {
	return json.Marshal(api.IPAMHandle{Block: c})
}

// plus adds n (which may be negative) addresses of block. A counter never goes
// below zero: one that would was wrong before.
func (c counts) plus(block string, n int) counts {
	out := maps.Clone(c)
	if out == nil {
		out = counts{}
	}
	out[block] += n
	if out[block] <= 0 {
		delete(out, block)
	}
	return out
}

// plusAll adds every counter of delta, multiplied by sign.
func (c counts) plusAll(delta counts, sign int) counts {
	for b, n := range delta {
		c = c.plus(b, sign*n)
	}
	return c
}
