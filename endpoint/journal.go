package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// journal remembers which attachments were begun and not finished, one small file each, named after the host's
// interface. What a record names is undone by the next start of the agent.
//
// Records are renamed into place, so that a killed agent leaves whole ones, but not flushed to the disk: after a loss
// of power there is neither the pair nor the container, and what is left in the datastore is in the same state as
// every attachment of a host that lost power, which the runtime deletes by DEL or GC when it finds its containers
// dead. A flush per attachment would cost more than the attachment.
type journal struct{ dir string }

const (
	journalSuffix = ".json"
	tempSuffix    = ".json.tmp"
)

// maxJournal bounds how many records are read at a start.
const maxJournal = 65536

func (j journal) path(hostName string) string { return filepath.Join(j.dir, hostName+journalSuffix) }

// begin writes the record of an attachment.
func (j journal) begin(hostName string, id ID) error {
	data, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode journal record: %w", err)
	}
	path := j.path(hostName)
	tmp := filepath.Join(j.dir, hostName+tempSuffix) // one writer per name: the caller holds the lock of hostName
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write journal record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write journal record: %w", err)
	}
	return nil
}

// end removes the record; it is no error when there is none.
func (j journal) end(hostName string) error {
	if err := os.Remove(j.path(hostName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal record: %w", err)
	}
	return nil
}

// read returns the record of hostName; ok is false when there is none. A file that is no record (the power went) is
// removed and reported as an error.
func (j journal) read(hostName string) (id ID, ok bool, err error) {
	data, err := os.ReadFile(j.path(hostName))
	if errors.Is(err, fs.ErrNotExist) {
		return ID{}, false, nil
	}
	if err != nil {
		return ID{}, false, fmt.Errorf("read journal record: %w", err)
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return ID{}, false, errors.Join(fmt.Errorf("journal record of %s is not JSON: %w", hostName, err), j.end(hostName))
	}
	return id, true, nil
}

// list returns the host interfaces that there are records of.
func (j journal) list() ([]string, error) {
	entries, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list journal: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), journalSuffix); ok && len(names) < maxJournal {
			names = append(names, name)
		}
	}
	return names, nil
}

// sweep removes what a process killed in begin left; nothing was attached then. Nobody may be in begin.
func (j journal) sweep() error {
	files, err := filepath.Glob(filepath.Join(j.dir, "*"+tempSuffix))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}
