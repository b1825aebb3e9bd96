package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/manekinet/maneki/cni/wire"
)

func TestRoundTrip(t *testing.T) {
	want := wire.Request{Command: "ADD", ContainerID: "c", Netns: "/x", IfName: "eth0", Args: "A=B", Config: json.RawMessage(`{"name":"n"}`)}
	msg, err := wire.Frame(&want)
	if err != nil {
		t.Fatal(err)
	}
	var got wire.Request
	if err := wire.Read(bytes.NewReader(msg), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTooLong(t *testing.T) {
	config, _ := json.Marshal(strings.Repeat("x", wire.MaxMessage))
	if _, err := wire.Frame(&wire.Request{Config: config}); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("frame: %v", err)
	}
	var r wire.Request
	if err := wire.Read(strings.NewReader("\x7f\xff\xff\xff"), &r); !errors.Is(err, wire.ErrTooLong) {
		t.Errorf("read: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x05{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r wire.Request
		if err := wire.Read(bytes.NewReader(data), &r); err != nil {
			return
		}
		msg, err := wire.Frame(&r)
		if err != nil {
			if len(r.Config) == 0 {
				return // a message without configuration cannot be written again
			}
			t.Fatal(err)
		}
		var again wire.Request
		if err := wire.Read(bytes.NewReader(msg), &again); err != nil {
			t.Fatalf("%q: %v", msg, err)
		}
	})
}
