package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Backup writes a snapshot of everything in the store, below /calico/ and
// elsewhere, in etcd's own format: the database file and its SHA-256 sum. It
// returns the number of bytes. A snapshot cut short is an error.
func (s *Store) Backup(ctx context.Context, w io.Writer) (int64, error) {
	var c *clientv3.Client
	err := s.request(ctx, "take a snapshot", func(ctx context.Context, found *clientv3.Client) (err error) {
		c = found
		_, err = c.MemberList(ctx, clientv3.WithSerializable()) // the stream would wait for a connection for ever
		return err
	})
	if err != nil {
		return 0, err
	}
	fail := func(err error) error { return fmt.Errorf("take a snapshot: %w", s.classify(ctx, err, "")) }
	stream, err := c.Snapshot(ctx)
	if err != nil {
		return 0, fail(err)
	}
	defer stream.Close()
	sum := &tailSum{hash: sha256.New()}
	n, err := io.Copy(io.MultiWriter(w, sum), stream)
	if err != nil {
		return n, fail(err)
	}
	if err := sum.check(); err != nil {
		return n, fmt.Errorf("take a snapshot: %w", err)
	}
	return n, nil
}

// tailSum compares a stream's last 32 bytes with the SHA-256 sum of all before.
type tailSum struct {
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	tail []byte
}

func (t *tailSum) Write(p []byte) (int, error) {
	t.tail = append(t.tail, p...)
	if n := len(t.tail) - sha256.Size; n > 0 {
		if _, err := t.hash.Write(t.tail[:n]); err != nil {
			return 0, err
		}
		t.tail = append(t.tail[:0], t.tail[n:]...)
	}
	return len(p), nil
}

func (t *tailSum) check() error {
	if !bytes.Equal(t.hash.Sum(nil), t.tail) {
		return errors.New("what etcd sent is not complete: its checksum does not fit")
	}
	return nil
}
