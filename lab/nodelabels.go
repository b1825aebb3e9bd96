package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

// labelNode puts the topology's labels on the Node resource, with the same
// commands that a user has: get, edit, replace. The agent writes the same
// object while it starts, so a conflict is tried again.
func (l *Lab) labelNode(ctx context.Context, h Host) error {
	if len(h.Labels) == 0 {
		return nil
	}
	var err error
	for range 5 {
		if err = l.labelOnce(ctx, h); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fmt.Errorf("label node %s: %w", h.Name, err)
}

func (l *Lab) labelOnce(ctx context.Context, h Host) error {
	raw, err := l.Output(ctx, h.Name, nil, "maneki", "get", "node", h.Name, "-o", "json")
	if err != nil {
		return err
	}
	edited, err := withLabels([]byte(raw), h.Labels)
	if err != nil {
		return err
	}
	_, err = l.Output(ctx, h.Name, bytes.NewReader(edited), "maneki", "replace", "-f", "-")
	return err
}

// withLabels merges labels into metadata.labels of a resource in JSON and
// keeps everything else as it is.
func withLabels(resource []byte, labels map[string]string) ([]byte, error) {
	var object, metadata map[string]json.RawMessage
	if err := json.Unmarshal(resource, &object); err != nil {
		return nil, fmt.Errorf("read node: %w", err)
	}
	if err := json.Unmarshal(object["metadata"], &metadata); err != nil {
		return nil, fmt.Errorf("read metadata of node: %w", err)
	}
	all := map[string]string{}
	if len(metadata["labels"]) > 0 {
		if err := json.Unmarshal(metadata["labels"], &all); err != nil {
			return nil, fmt.Errorf("read labels of node: %w", err)
		}
	}
	maps.Copy(all, labels)
	var err error
	if metadata["labels"], err = json.Marshal(all); err != nil {
		return nil, err
	}
	if object["metadata"], err = json.Marshal(metadata); err != nil {
		return nil, err
	}
	return json.Marshal(object)
}
