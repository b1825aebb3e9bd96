// Package wire is what the CNI executable and the agent say to each other over the agent's Unix socket.
//
// The executable sends one message: four bytes of length (big endian), then a Request in JSON. The file descriptor of
// the container's network namespace travels with the first bytes (SCM_RIGHTS), so that the agent needs to see neither
// the path nor the mount it is in. The agent answers with one message of the same form holding a Response. After an
// ADD the executable sends one byte more, Ack, when it has handed the result to the runtime; the agent that does not
// get it undoes the ADD, because nobody knows of the container's address.
//
// A connection closed by the executable before the answer cancels the request.
//
// The package is linked into the executable, which starts once per container: it imports little and keeps off package
// net.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	// DefaultSocket is where the agent listens, mode 0600.
	DefaultSocket = "/run/maneki/cni.sock"
	// DefaultStateDir holds what must outlive the agent; pending deletes are in its folder PendingDir.
	DefaultStateDir = "/var/lib/maneki/cni"
	// PendingDir is the folder of a state directory with the deletions to do later (package endpoint/pending).
	PendingDir = "pending"

	// MaxMessage bounds a message, in bytes. A GC of a host with 10 000 attachments takes 1.5 MB.
	MaxMessage = 8 << 20

	// Ack is the byte that says: the runtime has the result.
	Ack = byte('A')
)

// ErrTooLong means that a message is longer than MaxMessage.
var ErrTooLong = errors.New("message too long")

// Request is one call of the executable: what the runtime gave it (CNI specification 1.1, section 2).
type Request struct {
	Command     string          `json:"command"` // ADD, DEL, CHECK, GC or STATUS
	ContainerID string          `json:"containerID,omitempty"`
	Netns       string          `json:"netns,omitempty"` // path as the runtime spells it; for results only
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"` // CNI_ARGS
	Config      json.RawMessage `json:"config"`         // standard input
}

// Response is the agent's answer: Error, or the result as it is to be printed (empty for commands without one).
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *types.Error    `json:"error,omitempty"`
}

// Budget is how long the agent may work on a command; the executable waits a second longer.
//
// A runtime that hears "try again later" repeats ADD, so it is better to say that early than to keep it waiting; a DEL
// that takes too long is kept in PendingDir and done later.
func Budget(command string) time.Duration {
	switch command {
	case "DEL":
		return 15 * time.Second
	case "GC":
		return 60 * time.Second
	case "STATUS":
		return 4 * time.Second
	}
	return 9 * time.Second
}

// Frame returns v in JSON with its length in front.
func Frame[T Request | Response](v *T) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrTooLong, len(body), MaxMessage)
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...), nil
}

// Read reads one message from r into v.
func Read[T Request | Response](r io.Reader, v *T) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return ReadBody(r, head, v)
}

// ReadBody reads the rest of a message whose first four bytes are head.
func ReadBody[T Request | Response](r io.Reader, head [4]byte, v *T) error {
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxMessage {
		return fmt.Errorf("read message: %w: %d bytes, at most %d are allowed", ErrTooLong, size, MaxMessage)
	}
	// The buffer grows with what arrives: a length alone costs no memory.
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if len(body) < int(size) {
		return fmt.Errorf("read message: %w", io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("parse message: %w", err)
	}
	return nil
}
