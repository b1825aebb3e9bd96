// Package pending is the mailbox for deletions that could not be done at once.
//
// A container runtime calls DEL once and must be told that it worked, also while the agent or the datastore is down.
// Whoever answers it then (the CNI executable, or the agent without a datastore) leaves a record here, and the agent
// deletes what the record names when it can. A record is one small file, complete from the moment it has its name,
// and on the disk before Write returns, since the runtime will not ask again.
//
// The package is linked into the CNI executable, which starts once per container: it imports little.
package pending

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	suffix     = ".json"
	tempPrefix = ".tmp-"
	tempAge    = time.Minute // a file younger than that may still be in somebody's hands
	maxRecord  = 64 << 10    // bytes of one record; more is not ours
	// MaxRecords bounds how many records List returns at a time; the rest follows when these are gone.
	MaxRecords = 4096
)

// Record names an attachment that must go.
type Record struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`

	// Pod is set for a Kubernetes pod, whose endpoint is named after it. Namespace is empty for "default".
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`

	// Port is set for an interface that Docker puts in place, whose endpoint is named after it.
	Port string `json:"port,omitempty"`
}

// file is the record's name in the directory: the same attachment has the same name, so that a deletion that is
// asked for twice is there once.
func (r Record) file() string {
	h := fnv.New128a()
	for _, s := range []string{r.Network, r.ContainerID, r.IfName, r.Namespace, r.Pod} {
		_, _ = h.Write([]byte(s))
		_, _ = h.Write([]byte{0}) // none of them can hold a zero byte
	}
	if r.Port != "" {
		_, _ = h.Write([]byte(r.Port))
	}
	return fmt.Sprintf("%x%s", h.Sum(nil), suffix)
}

// Write puts r into dir, which it creates when it is missing (0700; the record is 0600).
func Write(dir string, r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode pending delete: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory for pending deletes: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, r.file()), data); err != nil {
		return fmt.Errorf("write pending delete of %s: %w", r.ContainerID, err)
	}
	return nil
}

// replaceFile writes data under path so that a reader sees all of it or nothing, also after a loss of power.
func replaceFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*") // 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// List returns the records in dir, at most MaxRecords. A directory that is not there holds none. The problems are
// files that are no records; they are left for a person to look at.
func List(dir string) (records []Record, problems []error, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list pending deletes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		if len(records) == MaxRecords {
			break
		}
		r, err := read(filepath.Join(dir, e.Name()))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		records = append(records, r)
	}
	return records, problems, nil
}

func read(path string) (Record, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Record{}, fmt.Errorf("read pending delete: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return Record{}, fmt.Errorf("pending delete %s is not a file of at most %d bytes", path, maxRecord)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("read pending delete: %w", err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("pending delete %s is not JSON: %w", path, err)
	}
	if r.Network == "" || r.ContainerID == "" || r.IfName == "" {
		return Record{}, fmt.Errorf("pending delete %s: network, containerID and ifName must be there", path)
	}
	return r, nil
}

// Has reports whether the deletion of r is pending.
func Has(dir string, r Record) bool {
	_, err := os.Lstat(filepath.Join(dir, r.file()))
	return err == nil
}

// Remove takes r out of dir; it is no error when it is not there.
func Remove(dir string, r Record) error {
	if err := os.Remove(filepath.Join(dir, r.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pending delete of %s: %w", r.ContainerID, err)
	}
	return nil
}

// Sweep removes what writers that were killed left behind. They had not answered, so nothing is lost.
func Sweep(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	for _, f := range files {
		info, serr := os.Lstat(f)
		if serr != nil || time.Since(info.ModTime()) < tempAge {
			continue
		}
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
