// Package bundle collects texts about a system, each by a function or a command
// of its own, into one compressed tar file. What cannot be collected is in the
// bundle as the reason why.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxItem bounds one item; what is longer is cut.
const maxItem = 32 << 20

// commandTime bounds one command.
const commandTime = 15 * time.Second

// Item is one file of a bundle.
type Item struct {
	Name    string // path inside the bundle
	Say     string // told before it is collected; may be empty
	Collect func(ctx context.Context) ([]byte, error)
}

// Text is an item whose contents are known.
func Text(name, text string) Item {
	return Item{Name: name, Collect: func(context.Context) ([]byte, error) { return []byte(text), nil }}
}

// File is an item copied from a file.
func File(name, path string) Item {
	return Item{Name: name, Collect: func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxItem))
	}}
}

// Command is an item that is the output of a program, its errors included.
func Command(name, say string, argv ...string) Item {
	return Item{Name: name, Say: say, Collect: func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		c := exec.CommandContext(ctx, argv[0], argv[1:]...)
		c.WaitDelay = time.Second
		var out limited
		c.Stdout, c.Stderr = &out, &out
		if err := c.Run(); err != nil {
			return out.Bytes(), fmt.Errorf("run %s: %w", strings.Join(argv, " "), err)
		}
		return out.Bytes(), nil
	}}
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxItem - l.Len(); room < len(p) {
		l.Buffer.Write(p[:max(0, room)])
		return len(p), nil
	}
	return l.Buffer.Write(p)
}

// Logs are the newest files of a directory, at most most of them.
func Logs(folder, dir string, most int) ([]Item, error) {
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // rotated away
		}
		if err == nil {
			files = append(files, file{path, info.ModTime()})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	var items []Item
	for _, f := range files[:min(most, len(files))] {
		rel, err := filepath.Rel(dir, f.path)
		if err != nil {
			return nil, err
		}
		items = append(items, File(filepath.Join(folder, rel), f.path))
	}
	return items, nil
}

// Write collects the items, parallel of them at the same time, and puts the
// bundle at path once it is complete. say is called in the order of the items.
func Write(ctx context.Context, path string, now time.Time, items []Item, parallel int, say func(text string)) error {
	texts := make([][]byte, len(items))
	var g errgroup.Group
	g.SetLimit(max(1, parallel))
	for i, item := range items {
		if item.Say != "" {
			say(item.Say)
		}
		g.Go(func() error {
			text, err := item.Collect(ctx)
			if err != nil {
				text = append(text, fmt.Sprintf("\nnot collected: %s\n", err)...)
			}
			texts[i] = text
			return nil
		})
	}
	_ = g.Wait() // no function above fails
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".diags-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	err = pack(f, now, items, texts)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path) // mode 0600: it tells much about the host
	}
	return err
}

func pack(w io.Writer, now time.Time, items []Item, texts [][]byte) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for i, item := range items {
		h := &tar.Header{Name: "diagnostics/" + item.Name, Mode: 0o644, Size: int64(len(texts[i])), ModTime: now}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(texts[i]); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}
