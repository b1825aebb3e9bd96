package etcd_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/datastoretest"
	"github.com/manekinet/maneki/datastore/etcd"
)

var handles = datastore.Query{Kind: datastore.KindIPAMHandle}

func handle(i int) datastore.Key {
	return datastore.Key{Kind: datastore.KindIPAMHandle, Name: strconv.Itoa(i)}
}

func put(t *testing.T, s datastore.Store, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, err := s.Put(t.Context(), handle(i), []byte(strconv.Itoa(i)), datastore.Always()); err != nil {
			t.Fatal(err)
		}
	}
}

// follow lets a consumer follow the handles until the test ends.
func follow(t *testing.T, s datastore.Store) *datastoretest.Consumer {
	t.Helper()
	c := &datastoretest.Consumer{}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = datastore.Follow(ctx, s, c.Deliver, handles, datastore.Query{Kind: "Node"}) })
	t.Cleanup(func() { cancel(); group.Wait() })
	return c
}

func waitFor(t *testing.T, c *datastoretest.Consumer, s datastore.Store) {
	t.Helper()
	if err := c.WaitFor(t.Context(), s, handles); err != nil {
		t.Fatal(err)
	}
}

// waitLost waits until the consumer has heard of a lost connection and returns
// what it heard.
func waitLost(t *testing.T, c *datastoretest.Consumer, within time.Duration) error {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := c.Lost(); err != nil {
			return err
		}
	}
	t.Fatalf("the loss was not reported in %s", within)
	return nil
}

// Every call on a datastore that is not there fails in time and names it.
func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, c := range []struct {
		name, address, says string
		user                string
	}{
		{"refused", closed.Addr().String(), "connection refused", ""},
		{"refused, with a password", closed.Addr().String(), "", "u"},
		{"silent", silent.Addr().String(), "", ""},
		{"no such host", "nosuchhost.invalid:2379", "nosuchhost.invalid", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, etcd.Config{Endpoints: []string{"http://" + c.address}, RequestTimeout: time.Second, DialTimeout: time.Second, Username: c.user, Password: c.user})
			calls := map[string]func() error{
				"get":    func() error { _, err := s.Get(t.Context(), handle(1)); return err },
				"list":   func() error { _, _, err := s.List(t.Context(), handles); return err },
				"put":    func() error { _, err := s.Put(t.Context(), handle(1), nil, datastore.Always()); return err },
				"delete": func() error { return s.Delete(t.Context(), handle(1), datastore.Always()) },
				"watch": func() error {
					w := s.Watch(t.Context(), "", handles)
					for range w.Events() {
					}
					return w.Err()
				},
			}
			for name, call := range calls {
				begun := time.Now()
				err := call()
				if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), c.address) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: error is %v", name, err)
				}
				if took := time.Since(begun); took > 3*time.Second {
					t.Errorf("%s took %s", name, took)
				}
			}
		})
	}
}

// A caller's own deadline is the caller's error.
func TestCallersDeadline(t *testing.T) {
	s := open(t, etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := s.Get(ctx, handle(1))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > time.Second {
		t.Errorf("error is %v after %s", err, time.Since(begun))
	}
}

// A follower survives crash and restart of the server without a lost or
// repeated effect, also of what happened while it was not connected.
func TestFollowRestart(t *testing.T) { everyVersion(t, testFollowRestart) }

func testFollowRestart(t *testing.T, v datastoretest.Version) {
	server := v.Start(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, RequestTimeout: 2 * time.Second})
	put(t, s, 0, 20)
	c := follow(t, s)
	waitFor(t, c, s)
	server.Kill()
	if err := waitLost(t, c, 3*time.Second); !strings.Contains(err.Error(), server.Endpoint()) {
		t.Errorf("the loss does not name the endpoint: %v", err)
	}
	server.Start()
	begun := time.Now()
	direct := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
	put(t, direct, 10, 30)
	if err := direct.Delete(t.Context(), handle(5), datastore.Always()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, direct)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("following again took %s", took)
	} else {
		t.Logf("following again took %s", took)
	}
}

// A server that stops answering with its connections open is noticed; after it
// goes on, so does everything.
func TestFollowPause(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, RequestTimeout: 2 * time.Second})
	put(t, s, 0, 5)
	c := follow(t, s)
	waitFor(t, c, s)
	server.Pause()
	waitLost(t, c, 12*time.Second)
	if _, err := s.Put(t.Context(), handle(0), nil, datastore.Always()); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("put on a stopped server: %v", err)
	}
	server.Resume()
	begun := time.Now()
	waitFor(t, c, s)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("recovery took %s", took)
	} else {
		t.Logf("recovery took %s", took)
	}
}

// Compaction past a watch that was cut ends in a list and the differences.
func TestFollowCompaction(t *testing.T) { everyVersion(t, testFollowCompaction) }

func testFollowCompaction(t *testing.T, v datastoretest.Version) {
	server := v.Start(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}})
	put(t, s, 0, 20)
	cl := admin(t, server)
	old, rev, err := s.List(t.Context(), handles)
	if err != nil || len(old) != 20 {
		t.Fatal(err)
	}
	put(t, s, 0, 20)
	compact(t, cl)
	// The first watch starts from before the compaction, as after a long sleep.
	stale := &staleOnce{Store: s, rev: rev, entries: old}
	c := follow(t, stale)
	waitFor(t, c, s)
	if n, _ := c.Lost(); n != 0 {
		t.Errorf("a compaction was reported %d times as a lost connection", n)
	}
}

// staleOnce answers the first list from the past.
type staleOnce struct {
	datastore.Store
	mu      sync.Mutex
	used    bool
	rev     datastore.Revision
	entries []datastore.Entry
}

func (s *staleOnce) List(ctx context.Context, q datastore.Query) ([]datastore.Entry, datastore.Revision, error) {
	s.mu.Lock()
	first := !s.used && q == handles
	s.used = s.used || first
	s.mu.Unlock()
	if first {
		return s.entries, s.rev, nil
	}
	return s.Store.List(ctx, q)
}

// A server that comes back with yesterday's data: what was written since is
// gone, and the follower says so, although its revision lies in the future.
func TestFollowRestoredBackup(t *testing.T) {
	t.Parallel()
	server := datastoretest.StartEtcd(t)
	s := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, RequestTimeout: 2 * time.Second})
	put(t, s, 0, 10)
	server.Kill()
	backup := server.Dir + ".backup"
	if out, err := exec.Command("cp", "-a", server.Dir, backup).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server.Start()
	put(t, s, 5, 60)
	c := follow(t, s)
	waitFor(t, c, s)
	server.Kill()
	if err := os.RemoveAll(server.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, server.Dir); err != nil {
		t.Fatal(err)
	}
	server.Start()
	put(t, s, 100, 103)
	waitFor(t, c, s)
	if es, _, err := s.List(t.Context(), handles); err != nil || len(es) != 13 {
		t.Errorf("%d handles after the restore (%v), want 13", len(es), err)
	}
}

// With several members the store goes on when one of them is killed or hangs.
func TestFailOver(t *testing.T) { everyVersion(t, testFailOver) }

func testFailOver(t *testing.T, v datastoretest.Version) {
	members := v.StartCluster(t, 3)
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.Endpoint())
	}
	s := open(t, etcd.Config{Endpoints: endpoints})
	put(t, s, 0, 10)
	c := follow(t, s)
	waitFor(t, c, s)
	for _, step := range []struct {
		name       string
		fail, heal func()
	}{
		{"kill", members[0].Kill, members[0].Start},
		{"hang", members[1].Pause, members[1].Resume},
		{"kill another", members[2].Kill, members[2].Start},
	} {
		step.fail()
		begun := time.Now()
		for i := 0; ; i++ {
			_, err := s.Put(t.Context(), handle(i%10), []byte(step.name), datastore.Always())
			if err == nil && i >= 30 {
				break
			}
			if err != nil && !errors.Is(err, datastore.ErrUnavailable) {
				t.Fatalf("%s: %v", step.name, err)
			}
			if time.Since(begun) > 40*time.Second {
				t.Fatalf("%s: no fail-over in 40 s: %v", step.name, err)
			}
		}
		t.Logf("%s: 30 writes after %s", step.name, time.Since(begun))
		waitFor(t, c, s)
		step.heal()
		if err := use(t, s); err != nil && !errors.Is(err, datastore.ErrUnavailable) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // until the member has caught up: a majority must remain
	}
}

// A full partition: no member answers, with all connections open. Afterwards the
// follower has everything once.
func TestFollowPartition(t *testing.T) {
	t.Parallel()
	members := datastoretest.V36.StartCluster(t, 3)
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.Endpoint())
	}
	s := open(t, etcd.Config{Endpoints: endpoints, RequestTimeout: 2 * time.Second})
	put(t, s, 0, 20)
	c := follow(t, s)
	waitFor(t, c, s)
	for _, m := range members {
		m.Pause()
	}
	waitLost(t, c, 20*time.Second)
	for _, m := range members {
		m.Resume()
	}
	writer := open(t, etcd.Config{Endpoints: endpoints})
	for end := time.Now().Add(20 * time.Second); ; {
		err := use(t, writer)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	put(t, writer, 10, 30)
	waitFor(t, c, writer)
}

// A change of the leader is no loss, or one that is made good.
func TestFollowLeaderChange(t *testing.T) {
	everyVersion(t, func(t *testing.T, v datastoretest.Version) {
		members := v.StartCluster(t, 3)
		var endpoints []string
		for _, m := range members {
			endpoints = append(endpoints, m.Endpoint())
		}
		s := open(t, etcd.Config{Endpoints: endpoints})
		put(t, s, 0, 20)
		c := follow(t, s)
		waitFor(t, c, s)
		for i := range 6 {
			moveLeader(t, s, members)
			if err := use(t, s); err != nil && !errors.Is(err, datastore.ErrUnavailable) {
				t.Fatal(err)
			}
			put(t, s, i*3, i*3+20)
		}
		waitFor(t, c, s)
	})
}

// moveLeader makes the next member the leader.
func moveLeader(t *testing.T, s *etcd.Store, servers []*datastoretest.EtcdServer) {
	t.Helper()
	members, err := s.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range members {
		if !m.Leader {
			continue
		}
		for _, server := range servers {
			if len(m.ClientURLs) == 1 && m.ClientURLs[0] == server.Endpoint() {
				if _, err := admin(t, server).MoveLeader(t.Context(), members[(i+1)%len(members)].ID); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("no leader: %+v", members)
}

// A server that began anew at an address of the cluster, empty, is not used, also
// when it is the first that was configured and this process has just started.
func TestRefreshLeavesStrangersOut(t *testing.T) {
	t.Parallel()
	members := datastoretest.V36.StartCluster(t, 3)
	stranger := datastoretest.V36.Start(t)
	first := open(t, etcd.Config{Endpoints: []string{members[0].Endpoint()}})
	put(t, first, 0, 3)
	known, err := first.Refresh(t.Context())
	if err != nil || len(known) != 3 {
		t.Fatalf("members: %v, %v", known, err)
	}
	s := open(t, etcd.Config{Endpoints: append([]string{stranger.Endpoint()}, known...)})
	s.SetCluster(first.Cluster())
	got, err := s.Refresh(t.Context())
	if err != nil || len(got) != 3 || slices.Contains(got, stranger.Endpoint()) {
		t.Fatalf("with a stranger: %v, %v", got, err)
	}
	for range 20 {
		if es, _, err := s.List(t.Context(), handles); err != nil || len(es) != 3 {
			t.Fatalf("%d handles, %v", len(es), err)
		}
	}
	// When the whole cluster is another one, as after a restore, that is used.
	alone := open(t, etcd.Config{Endpoints: []string{stranger.Endpoint()}})
	alone.SetCluster(first.Cluster())
	if got, err := alone.Refresh(t.Context()); err != nil || len(got) != 1 || alone.Cluster() == first.Cluster() {
		t.Errorf("after a restore: %v, %v", got, err)
	}
}
