package embedded

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/etcd"
)

// ErrMembership means that this host cannot be the member that it is told to
// be; the text says why and what to do. Trying again is of no use.
var ErrMembership = errors.New("membership")

// refusal is an ErrMembership in its own words.
type refusal struct{ text string }

func (r refusal) Error() string { return r.text }
func (refusal) Unwrap() error   { return ErrMembership }

func refuse(format string, args ...any) error { return refusal{fmt.Sprintf(format, args...)} }

const (
	surveyTimeout   = 5 * time.Second
	joinPatience    = 30 * time.Second // for other hosts that are joining
	promotePause    = 200 * time.Millisecond
	promotePatience = 5 * time.Minute  // for a learner that catches up
	clockTolerance  = 30 * time.Second // certificates, and IPAM's ages of blocks, compare clocks
)

// survey is what a cluster says of itself.
type survey struct {
	client  *clientv3.Client
	cluster uint64
	members []*etcdserverpb.Member
	urls    []string
}

// ask connects to a cluster by the client URLs of some of its members. The
// error is datastore.ErrUnavailable when none answers.
func ask(ctx context.Context, cfg Config, members *tls.Config) (*survey, error) {
	urls := cfg.Join
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: surveyTimeout, TLS: forURLs(members, urls), Logger: etcd.ZapLogger(cfg.Log, slog.LevelError)})
	if err != nil {
		return nil, refuse("join %s: %v", strings.Join(urls, ", "), err)
	}
	s := &survey{client: c, urls: urls}
	if err := s.refresh(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("%w: the cluster to join does not answer at %s: %w", datastore.ErrUnavailable, strings.Join(urls, ", "), err)
	}
	return s, nil
}

func (s *survey) close() { _ = s.client.Close() }

func (s *survey) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	resp, err := s.client.MemberList(ctx)
	if err != nil {
		return err
	}
	s.cluster, s.members = resp.Header.ClusterId, resp.Members
	return nil
}

func (s *survey) find(match func(*etcdserverpb.Member) bool) *etcdserverpb.Member {
	if i := slices.IndexFunc(s.members, match); i >= 0 {
		return s.members[i]
	}
	return nil
}

// prepareJoin makes this host a member of the cluster at cfg.Join, or finds that
// it is one already, and completes the engine's configuration.
func prepareJoin(ctx context.Context, cfg Config, ec *embed.Config) error {
	path := filepath.Join(cfg.Dir, "member", "wal")
	restarted := wal.Exist(path)
	var own memberLog
	if restarted {
		var err error
		if own, err = readLog(path); err != nil {
			return err
		}
	}
	members, err := cfg.clientTLS()
	if err != nil {
		return err
	}
	s, err := ask(ctx, cfg, members)
	if err != nil {
		if restarted { // the others may be waiting for this very member
			cfg.Log.Warn("the cluster does not answer; this member starts with what it has", "join", cfg.Join, "err", err)
			return nil
		}
		return err
	}
	defer s.close()
	if restarted {
		return s.checkReturn(cfg, own)
	}
	if err := checkClock(ctx, cfg.Join, members); err != nil {
		return err
	}
	return s.enter(ctx, cfg, ec)
}

// checkReturn reports a data directory that does not belong to the cluster.
func (s *survey) checkReturn(cfg Config, own memberLog) error {
	if own.cluster != s.cluster {
		return refuse("the data in %s belong to another cluster (%x) than the one at %s (%x): "+
			"leave --join out to go on with the former, or move the directory away to join the latter", cfg.Dir, own.cluster, strings.Join(s.urls, ", "), s.cluster)
	}
	if s.find(func(m *etcdserverpb.Member) bool { return m.ID == own.member }) == nil {
		return removedError(cfg.Dir)
	}
	return nil
}

func removedError(dir string) error {
	return refuse("this host was removed from the members of the cluster and its data in %s are of no use any more: move the directory away, then start with --join to become a member again", dir)
}

// enter adds this host as a learner, which has no vote until it has the data,
// so that a host which never comes up costs the cluster nothing.
func (s *survey) enter(ctx context.Context, cfg Config, ec *embed.Config) error {
	for end := time.Now().Add(joinPatience); ; {
		added, err := s.admission(cfg)
		if err != nil || added {
			if err == nil {
				s.describe(cfg, ec)
			}
			return err
		}
		addCtx, cancel := context.WithTimeout(ctx, surveyTimeout)
		_, err = s.client.MemberAddAsLearner(addCtx, cfg.PeerURLs)
		cancel()
		switch {
		case err == nil:
			cfg.Log.Info("added to the cluster as a learner", "join", s.urls, "peerURLs", cfg.PeerURLs)
		case time.Now().After(end):
			return fmt.Errorf("%w: the cluster at %s does not take another member now: %w", datastore.ErrUnavailable, strings.Join(s.urls, ", "), explainAdd(err))
		default:
			cfg.Log.Info("the cluster does not take another member yet", "because", explainAdd(err))
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
		}
		if err := s.refresh(ctx); err != nil {
			return fmt.Errorf("%w: list members: %w", datastore.ErrUnavailable, err)
		}
	}
}

func explainAdd(err error) error {
	switch rpctypes.Error(err) {
	case rpctypes.ErrTooManyLearners:
		return errors.New("another host is joining and has not got all the data yet")
	case rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted:
		return errors.New("one of its members does not answer, or has come only seconds ago")
	}
	return err
}

// admission says whether the cluster has added this host before, and refuses
// what would be two members in one.
func (s *survey) admission(cfg Config) (added bool, err error) {
	mine := func(m *etcdserverpb.Member) bool { return slices.ContainsFunc(m.PeerURLs, has(cfg.PeerURLs)) }
	if m := s.find(func(m *etcdserverpb.Member) bool { return m.Name == cfg.Name }); m != nil {
		return false, refuse("%s is a member of the cluster already (%x, at %s), with data that %s does not hold: "+
			"if they are in another directory, use that one; if they are lost, type `maneki datastore members remove %s` on another host and start again",
			cfg.Name, m.ID, strings.Join(m.PeerURLs, ", "), cfg.Dir, cfg.Name)
	}
	m := s.find(mine)
	if m == nil {
		return false, nil
	}
	if m.Name != "" {
		return false, refuse("the peer address %s is that of member %s: give this host another with --etcd-peer", strings.Join(m.PeerURLs, ", "), m.Name)
	}
	return true, nil
}

func has(list []string) func(string) bool {
	return func(s string) bool { return slices.Contains(list, s) }
}

// describe tells the engine who the members are.
func (s *survey) describe(cfg Config, ec *embed.Config) {
	var cluster []string
	for _, m := range s.members {
		name := cmp.Or(m.Name, fmt.Sprintf("%x", m.ID))
		if slices.ContainsFunc(m.PeerURLs, has(cfg.PeerURLs)) {
			name = cfg.Name
		}
		for _, u := range m.PeerURLs {
			cluster = append(cluster, name+"="+u)
		}
	}
	ec.InitialCluster = strings.Join(cluster, ",")
	ec.ClusterState = embed.ClusterStateFlagExisting
}

// checkClock compares this host's clock with a member's, to the second.
func checkClock(ctx context.Context, urls []string, members *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	for _, u := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(u, "/")+"/version", nil)
		if err != nil {
			continue
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: forURLs(members, []string{u})}}
		resp, err := client.Do(req)
		if err != nil {
			continue // whether it answers is for others to say
		}
		_ = resp.Body.Close()
		theirs, err := http.ParseTime(resp.Header.Get("Date"))
		if err != nil {
			continue
		}
		return compareClocks(time.Now(), theirs, u)
	}
	return nil
}

func compareClocks(ours, theirs time.Time, where string) error {
	if d := ours.Sub(theirs).Round(time.Second); d.Abs() > clockTolerance {
		word := "ahead of"
		if d < 0 {
			word = "behind"
		}
		return refuse("this host's clock is %s %s that of the cluster at %s (allowed: %s): set it right, for example by NTP, and start again", d.Abs(), word, where, clockTolerance)
	}
	return nil
}

// promote waits until this member has all data and gives it its vote.
func (s *Server) promote(ctx context.Context, cfg Config) error {
	if !s.etcd.Server.IsLearner() {
		return nil
	}
	id := uint64(s.etcd.Server.MemberID())
	urls := slices.Clone(cfg.Join)
	for _, m := range s.etcd.Server.Cluster().Members() {
		if uint64(m.ID) != id && !m.IsLearner {
			urls = append(urls, m.ClientURLs...)
		}
	}
	members, err := cfg.clientTLS()
	if err != nil {
		return fmt.Errorf("become a voting member: %w", err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: surveyTimeout, TLS: forURLs(members, urls), Logger: etcd.ZapLogger(cfg.Log, slog.LevelError)})
	if err != nil {
		return fmt.Errorf("become a voting member: %w", err)
	}
	defer c.Close()
	for end := time.Now().Add(promotePatience); ; {
		call, cancel := context.WithTimeout(ctx, surveyTimeout)
		_, err := c.MemberPromote(call, id)
		cancel()
		if err == nil || rpctypes.Error(err) == rpctypes.ErrMemberNotLearner {
			cfg.Log.Info("this host is a voting member of the cluster")
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: become a voting member: %w", datastore.ErrUnavailable, err)
		}
		if err := pause(ctx, promotePause); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
