package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/exit"
)

func (a *app) snapshotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "snapshot FILE",
		Short: "Save the whole datastore into a file",
		Long: `Save the whole datastore into a file, in etcd's own format: 'restore' reads it, and so
do etcdctl and etcdutl. The file appears when it is complete; it can be read by its
owner only, since it may hold secrets.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withCluster(c.Context(), func(ctx context.Context, cl cluster) error { return a.saveSnapshot(ctx, cl, args[0]) })
		},
	}
}

func (a *app) saveSnapshot(ctx context.Context, c cluster, path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*") // mode 0600
	if err != nil {
		return exit.New(exit.Input, "name a file in a directory that is there", fmt.Errorf("save snapshot: %w", err))
	}
	defer os.Remove(f.Name())
	_, err = c.Backup(ctx, f)
	if err != nil {
		return a.describe("get", "snapshot", errors.Join(err, f.Close()))
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	st, err := embedded.Inspect(f.Name())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	fmt.Fprintf(a.Stdout, "Saved %d keys at revision %d, %s, to %s\n", st.Keys, st.Revision, bytesText(st.Size), path)
	return nil
}

func (a *app) restoreCommand() *cobra.Command {
	var r embedded.RestoreConfig
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make this host's data directory from a snapshot",
		Long: `Make the data directory of this host's embedded etcd from a snapshot that 'snapshot',
etcdctl or etcdutl has saved. Stop the agent first. The host is then the only member
of a new cluster; other hosts that kept the datastore join again with an empty data
directory. Revisions go on well above those of the snapshot, so that no agent takes
new contents for old ones.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r.Snapshot = args[0]
			return a.restore(r)
		},
	}
	f := c.Flags()
	f.StringVar(&r.Dir, "dir", "/var/lib/maneki/etcd", "data directory to make")
	f.StringVar(&r.Name, "name", "", "name of the member (default: NODENAME, the host's name)")
	f.BoolVar(&r.Force, "force", false, "move a data directory that is there aside instead of refusing")
	f.BoolVar(&r.SkipHashCheck, "skip-hash-check", false, "take a database file copied from a data directory (member/snap/db), which has no checksum")
	return c
}

func (a *app) restore(r embedded.RestoreConfig) error {
	if r.Name == "" {
		r.Name = a.Environ("NODENAME")
	}
	if r.Name == "" {
		if h, err := os.Hostname(); err == nil {
			r.Name = h
		}
	}
	st, err := embedded.Inspect(r.Snapshot)
	if err != nil {
		return exit.New(exit.Input, "", err)
	}
	moved, err := embedded.Restore(r)
	switch {
	case errors.Is(err, embedded.ErrNotEmpty):
		return exit.New(exit.Conflict, "--force moves it aside", err)
	case errors.Is(err, embedded.ErrInUse):
		return exit.New(exit.Busy, "stop the agent first", err)
	case errors.Is(err, fs.ErrPermission):
		return exit.New(exit.Denied, "run the command as root", err)
	case err != nil:
		return exit.New(exit.Input, "", err)
	}
	if moved != "" {
		fmt.Fprintf(a.Stdout, "Moved what was there to %s\n", moved)
	}
	fmt.Fprintf(a.Stdout, "Restored %d keys of revision %d into %s\n", st.Keys, st.Revision, r.Dir)
	fmt.Fprintf(a.Stdout, "Start the agent without --join. Other hosts that kept the datastore join again with an empty data directory.\n")
	return nil
}
