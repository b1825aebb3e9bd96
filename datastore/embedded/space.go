package embedded

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// space is how much of a disk the server may take, derived from its size so
// that a small one is full in an orderly way: etcd ends when a write to its log
// or database fails, while with the alarm NOSPACE it refuses writes, goes on
// serving reads, and recovers.
type space struct {
	quota   int64 // of the database file
	segment int64 // of the log; two are allocated at once
	reserve int64 // bytes free below which writes are refused
}

// spaceOf a filesystem of total bytes. The database may take a quarter of it,
// since the log of the entries since the last snapshot can grow as large.
func spaceOf(total int64) space {
	return space{
		quota:   min(quota, total/4),
		segment: min(walSegment, max(total/64, 256<<10)),
		reserve: min(maxReserve, total/8),
	}
}

const (
	maxReserve    = 64 << 20
	spaceInterval = time.Second
	spaceTimeout  = 10 * time.Second
	// refill is the share of the quota up to which the database may be filled for
	// writes to be let in again, lest the alarm comes and goes.
	refill = 0.9
)

// disk are the bytes of the filesystem that holds dir, or will.
func disk(dir string) (total, free int64, err error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
		}
		up := filepath.Dir(dir)
		// What stands in the way is said when the folder is made.
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) || up == dir {
			return 0, 0, fmt.Errorf("find out the size of the disk of %s: %w", dir, err)
		}
		dir = up
	}
}

// keepSpace raises the alarm while the disk can still take what is under way,
// and ends it when there is space again.
func (s *Server) keepSpace(client *clientv3.Client, sp space) {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	told := ""
	for {
		select {
		case <-s.closing:
			return
		case <-tick.C:
		}
		_, free, err := disk(s.dir)
		if err != nil || s.guard.broken.Load() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), spaceTimeout)
		err = s.adjustSpace(ctx, client, sp, free)
		cancel()
		switch {
		case err == nil:
			told = ""
		case err.Error() != told: // once, not every second
			told = err.Error()
			s.log.Warn("the alarm for lack of space could not be set or ended", "free", free, "err", err)
		}
	}
}

func (s *Server) alarmed() bool {
	id := uint64(s.etcd.Server.MemberID())
	for _, a := range s.etcd.Server.Alarms() {
		if a.MemberID == id && a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}

func (s *Server) adjustSpace(ctx context.Context, client *clientv3.Client, sp space, free int64) error {
	alarmed := s.alarmed()
	switch {
	case free < sp.reserve && !alarmed:
		s.log.Error("the disk of the datastore is almost full: it refuses writes until there is space", "dir", s.dir, "free", free, "needed", sp.reserve)
		return s.alarm(ctx, etcdserverpb.AlarmRequest_ACTIVATE)
	case alarmed:
		return s.recover(ctx, client, sp, free)
	}
	return nil
}

func (s *Server) alarm(ctx context.Context, action etcdserverpb.AlarmRequest_AlarmAction) error {
	_, err := s.etcd.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: action, MemberID: uint64(s.etcd.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE})
	return err
}

// recover ends the alarm if the disk and the database have room, after it has
// given back what history and deleted objects take, if need be. Deletions are
// served during the alarm.
func (s *Server) recover(ctx context.Context, client *clientv3.Client, sp space, free int64) error {
	limit := int64(float64(sp.quota) * refill)
	roomy := func() bool { return free > 2*sp.reserve && s.etcd.Server.Backend().Size() <= limit }
	if !roomy() {
		if changed, err := s.shrink(ctx, client); err != nil || !changed {
			return err
		}
		if _, now, err := disk(s.dir); err == nil {
			free = now
		}
		if !roomy() {
			return nil // it holds that much: objects must go, or other files
		}
	}
	if err := s.alarm(ctx, etcdserverpb.AlarmRequest_DEACTIVATE); err != nil {
		return err
	}
	s.log.Info("the datastore has space again and takes writes", "dir", s.dir, "database", s.etcd.Server.Backend().Size())
	return nil
}

// shrink compacts and defragments, unless that was done since the last write or
// a while ago: the member answers nothing meanwhile. What the database would need
// afterwards only shows then, as bbolt counts freed pages late.
func (s *Server) shrink(ctx context.Context, client *clientv3.Client) (changed bool, err error) {
	if time.Now().Before(s.shrinkAfter) {
		return false, nil
	}
	begun := time.Now()
	defer func() { s.shrinkAfter = time.Now().Add(max(2*spaceInterval, 10*time.Since(begun))) }()
	if changed, err := s.compact(ctx, client); err != nil || !changed {
		return false, err
	}
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return false, fmt.Errorf("defragment: %w", err)
	}
	return true, nil
}

// compact forgets the history up to now, if there is any.
func (s *Server) compact(ctx context.Context, client *clientv3.Client) (changed bool, err error) {
	resp, err := client.Get(ctx, "/", clientv3.WithCountOnly())
	if err != nil {
		return false, fmt.Errorf("compact: %w", err)
	}
	if s.compacted == resp.Header.Revision {
		return false, nil
	}
	_, err = client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && rpctypes.Error(err) != rpctypes.ErrCompacted { // it was, by an earlier process
		return false, fmt.Errorf("compact: %w", err)
	}
	s.compacted = resp.Header.Revision
	return true, nil
}
