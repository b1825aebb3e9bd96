package agentapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"
)

// Packet is a packet or the first packet of a connection.
type Packet struct {
	Source          netip.Addr `json:"source"`
	Destination     netip.Addr `json:"destination"`
	Protocol        uint8      `json:"protocol"` // IP protocol number
	SourcePort      uint16     `json:"sourcePort,omitempty"`
	DestinationPort uint16     `json:"destinationPort,omitempty"`
	Type            uint8      `json:"icmpType,omitempty"`
	Code            uint8      `json:"icmpCode,omitempty"`
	// What people call the two; the agent leaves them empty, the command line fills them in.
	SourceName      string `json:"sourceName,omitempty"`
	DestinationName string `json:"destinationName,omitempty"`
}

// Verdict is why a packet was let through or not.
type Verdict struct {
	Allowed   bool   `json:"allowed"`
	Endpoint  string `json:"endpoint,omitempty"` // NAMESPACE/NAME, or the name of a host endpoint; empty where several share the rule
	Direction string `json:"direction,omitempty"`
	Tier      string `json:"tier,omitempty"`
	Policy    string `json:"policy,omitempty"` // "NetworkPolicy(default/web)"
	Rule      *int   `json:"rule,omitempty"`   // counted from 0
	Because   string `json:"because"`          // in words
}

// Drop is one denied packet: a line of the stream at /v1/drops.
type Drop struct {
	Time    time.Time `json:"time"`
	Packet  Packet    `json:"packet"`
	In      string    `json:"in,omitempty"`  // interface it came by
	Out     string    `json:"out,omitempty"` // interface it would have left by
	Verdict Verdict   `json:"verdict"`
	// Staged is what would be decided if the staged policies were in force; nil where that is the same.
	Staged *Verdict `json:"staged,omitempty"`
	// Lost: more packets were denied than could be reported. A line with Lost has nothing else.
	Lost bool `json:"lost,omitempty"`
}

// Flow is one connection: a line of the stream at /v1/flows, and with
// ?follow=1 one that begins or ends.
type Flow struct {
	Time    time.Time `json:"time"`
	Packet  Packet    `json:"packet"`
	Verdict Verdict   `json:"verdict"`
	Staged  *Verdict  `json:"staged,omitempty"`  // as in Drop
	Packets uint64    `json:"packets,omitempty"` // both ways; 0 where the kernel does not count
	Bytes   uint64    `json:"bytes,omitempty"`
	Replied bool      `json:"replied"`
	Ended   bool      `json:"ended,omitempty"`
}

// RuleHits is the counter of one rule, or of one default, on all endpoints of
// the host to which it applies: a row of the document at /v1/policy/hits.
type RuleHits struct {
	Verdict Verdict `json:"verdict"`
	Packets uint64  `json:"packets"`
	Bytes   uint64  `json:"bytes"`
}

// Drops calls got for every packet that the host denies from now on, until ctx
// is done or the agent stops; then it returns nil.
func (c *Client) Drops(ctx context.Context, got func(Drop)) error {
	return stream(ctx, c, "/v1/drops", got)
}

// Flows calls got for every connection of the host's workloads that there is;
// with follow it goes on with those that begin and end, until ctx is done.
func (c *Client) Flows(ctx context.Context, follow bool, got func(Flow)) error {
	path := "/v1/flows"
	if follow {
		path += "?follow=1"
	}
	return stream(ctx, c, path, got)
}

// Hits asks for the counters of the rules in force.
func (c *Client) Hits(ctx context.Context) ([]RuleHits, error) {
	var out []RuleHits
	if err := get(ctx, c, "/v1/policy/hits", &out); err != nil {
		return nil, err
	}
	return out, nil
}

// maxLine bounds one line of a stream, in bytes.
const maxLine = 1 << 20

// line is what streams consist of.
type line interface{ Drop | Flow }

func stream[T line](ctx context.Context, c *Client, path string, got func(T)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return fmt.Errorf("ask agent for %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w (socket %s: %w)", ErrNotRunning, c.path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxLine))
		return fmt.Errorf("agent answered %s to %s: %s", resp.Status, path, body)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		var v T
		if len(lines.Bytes()) == 0 {
			continue // a sign of life
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return fmt.Errorf("parse agent's answer to %s: %w", path, err)
		}
		got(v)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read agent's answer to %s: %w", path, err)
	}
	return nil
}
