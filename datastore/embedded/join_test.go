package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/datastore/embedded"
	"github.com/manekinet/maneki/datastore/etcd"
)

// host is one member's place: its directory and addresses stay when it dies.
type host struct {
	embedded.Config
	*embedded.Server
}

func newHost(t *testing.T, name string, join ...string) *host {
	t.Helper()
	return &host{Config: embedded.Config{
		Name: name, Dir: filepath.Join(t.TempDir(), name),
		ClientURLs: []string{"http://" + freeAddress(t)}, PeerURLs: []string{"http://" + freeAddress(t)}, Join: join,
	}}
}

func (h *host) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := embedded.Start(ctx, h.Config)
	if err != nil {
		t.Fatal(err)
	}
	h.Server = s
	t.Cleanup(func() { _ = s.Close() })
}

// freeAddress is an address of this host on which nobody listens, below the
// ports that the kernel gives to outgoing connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(17000))))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port found on 127.0.0.1")
	return ""
}

func startThree(t *testing.T) [3]*host {
	h1 := newHost(t, "h1")
	h1.start(t)
	h2, h3 := newHost(t, "h2", h1.ClientURLs...), newHost(t, "h3", h1.ClientURLs...)
	h2.start(t)
	h3.start(t)
	return [3]*host{h1, h2, h3}
}

func put(t *testing.T, s datastore.Store, name, value string) {
	t.Helper()
	if err := tryPut(t.Context(), s, name, value); err != nil {
		t.Fatal(err)
	}
}

// tryPut repeats a write for as long as an election may take.
func tryPut(ctx context.Context, s datastore.Store, name, value string) (err error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err = s.Put(ctx, datastore.Key{Kind: "Node", Name: name}, []byte(value), datastore.Always()); err == nil {
			return nil
		}
	}
	return err
}

func wantValue(t *testing.T, s datastore.Store, name, value string) {
	t.Helper()
	var e datastore.Entry
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if e, err = s.Get(t.Context(), datastore.Key{Kind: "Node", Name: name}); err == nil {
			break
		}
	}
	if err != nil || string(e.Value) != value {
		t.Fatalf("%s is %q, %v; want %q", name, e.Value, err, value)
	}
}

// Three hosts; each may leave and come back, alone and all together.
func TestJoin(t *testing.T) {
	hosts := startThree(t)
	members, err := hosts[0].Store().(*etcd.Store).Members(t.Context())
	if err != nil || len(members) != 3 {
		t.Fatalf("%+v, %v", members, err)
	}
	leaders := 0
	for i, m := range members {
		if m.Name != hosts[i].Name || m.Learner || m.Err != nil || m.Version == "" {
			t.Errorf("member %+v", m)
		}
		if m.Leader {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d leaders: %+v", leaders, members)
	}
	for i, h := range hosts {
		put(t, h.Store(), h.Name, strconv.Itoa(i))
		for _, other := range hosts {
			wantValue(t, other.Store(), h.Name, strconv.Itoa(i))
		}
	}
	for i, h := range hosts {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		put(t, hosts[(i+1)%3].Store(), "without", h.Name)
		h.start(t)
		wantValue(t, h.Store(), "without", h.Name)
	}
	for _, h := range hosts {
		_ = h.Close()
	}
	back := make(chan error, 3)
	for _, h := range hosts {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			s, err := embedded.Start(ctx, h.Config)
			h.Server = s
			back <- err
		}()
	}
	for range hosts {
		if err := <-back; err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range hosts {
		wantValue(t, h.Store(), "without", "h3")
		t.Cleanup(func() { _ = h.Close() })
	}
}

// A host whose disk is lost is removed by name and joins again as a new member.
func TestJoinAfterLoss(t *testing.T) {
	hosts := startThree(t)
	put(t, hosts[0].Store(), "n", "kept")
	lost := hosts[1]
	if err := lost.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.Dir); err != nil {
		t.Fatal(err)
	}
	_, err := embedded.Start(t.Context(), lost.Config)
	if !errors.Is(err, embedded.ErrMembership) || !strings.Contains(err.Error(), "maneki datastore members remove h2") {
		t.Fatalf("with an empty directory: %v", err)
	}
	store := hosts[0].Store().(*etcd.Store)
	remove(t, store, "h2")
	lost.start(t)
	wantValue(t, lost.Store(), "n", "kept")
	members, err := store.Members(t.Context())
	if err != nil || len(members) != 3 || members[1].Name != "h2" || members[1].Learner {
		t.Errorf("%+v, %v", members, err)
	}
}

func remove(t *testing.T, store *etcd.Store, name string) {
	t.Helper()
	members, err := store.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Name != name {
			continue
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			err := store.RemoveMember(t.Context(), m.ID)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	t.Fatalf("no member %s in %+v", name, members)
}

// A member that is removed while it runs says so, and so does its next start.
func TestRemoved(t *testing.T) {
	hosts := startThree(t)
	remove(t, hosts[0].Store().(*etcd.Store), "h3")
	select {
	case err := <-hosts[2].Failed():
		if !errors.Is(err, embedded.ErrMembership) || !strings.Contains(err.Error(), "was removed from the members") {
			t.Errorf("the removed member ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the removed member goes on")
	}
	_ = hosts[2].Close()
	for _, join := range [][]string{hosts[2].Join, nil} {
		hosts[2].Join = join
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := embedded.Start(ctx, hosts[2].Config)
		cancel()
		if !errors.Is(err, embedded.ErrMembership) || !strings.Contains(err.Error(), "was removed from the members") {
			t.Errorf("its next start, --join %v: %v", join, err)
		}
	}
}

// What cannot be a member is told why before anything is changed.
func TestJoinRefused(t *testing.T) {
	h1 := newHost(t, "h1")
	h1.start(t)
	other := newHost(t, "other")
	other.start(t)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	same := newHost(t, "h1", h1.ClientURLs...)
	wrong := *other
	wrong.Join = h1.ClientURLs
	taken := newHost(t, "h2", h1.ClientURLs...)
	taken.PeerURLs = h1.PeerURLs
	nobody := newHost(t, "h2", "http://"+freeAddress(t))
	alone := newHost(t, "h2", h1.ClientURLs...)
	alone.PeerURLs = nil
	for _, c := range []struct {
		name  string
		cfg   embedded.Config
		class error
		says  string
	}{
		{"name taken", same.Config, embedded.ErrMembership, "h1 is a member of the cluster already"},
		{"data of another cluster", wrong.Config, embedded.ErrMembership, "belong to another cluster"},
		{"peer address taken", taken.Config, embedded.ErrMembership, "is that of member h1: give this host another with --etcd-peer"},
		{"nobody there", nobody.Config, datastore.ErrUnavailable, "the cluster to join does not answer at " + nobody.Join[0]},
		{"no peer URL", alone.Config, nil, "no peer URL given"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := embedded.Start(t.Context(), c.cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("it started")
			}
			if c.class != nil && !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want %q", err, c.says)
			}
		})
	}
	members, err := h1.Store().(*etcd.Store).Members(t.Context())
	if err != nil || len(members) != 1 {
		t.Errorf("a refusal changed the members: %+v, %v", members, err)
	}
}

// A member of two whose peer is gone serves no writes and says that it has no
// leader; a client of both goes on when one of three is gone.
func TestMinority(t *testing.T) {
	hosts := startThree(t)
	client, err := etcd.New(t.Context(), etcd.Config{Endpoints: hosts[1].Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	known, err := client.Refresh(t.Context())
	if err != nil || len(known) != 3 {
		t.Fatalf("addresses known after Refresh: %v, %v", known, err)
	}
	if err := hosts[1].Close(); err != nil { // the only one that was configured
		t.Fatal(err)
	}
	put(t, client, "n", "two are left")
	if err := hosts[2].Close(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]datastore.Store{"in process": hosts[0].Store(), "client": client} {
		err := error(nil)
		for range 5 { // until the last leader has given up
			if _, err = s.Put(t.Context(), datastore.Key{Kind: "Node", Name: "n"}, nil, datastore.Always()); err != nil && strings.Contains(err.Error(), "has no leader") {
				break
			}
		}
		if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "has no leader") {
			t.Errorf("%s: write in a minority: %v", name, err)
		}
	}
	members, err := hosts[0].Store().(*etcd.Store).Members(t.Context())
	if err != nil || len(members) != 3 || members[1].Err == nil || members[0].Err != nil {
		t.Errorf("members as a minority sees them: %s, %v", fmt.Sprint(members), err)
	}
	hosts[1].start(t)
	put(t, hosts[0].Store(), "n", "again two")
	wantValue(t, client, "n", "again two")
}
