package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/manekinet/maneki/datastore"
)

// memberTimeout bounds how long one member may take to tell its state.
const memberTimeout = 2 * time.Second

// Member is one server of the cluster.
type Member struct {
	ID         uint64
	Name       string // empty as long as it was added and has never started
	PeerURLs   []string
	ClientURLs []string
	Learner    bool

	// What the member itself says; Err is set instead when it does not answer.
	Leader  bool
	Version string
	Size    int64    // of the database file, bytes
	InUse   int64    // of Size, what is not free pages
	Alarms  []string // "NOSPACE", "CORRUPT"
	Err     error
}

// ClusterID is the identity of the cluster that answers.
func (s *Store) ClusterID(ctx context.Context) (id uint64, err error) {
	err = s.request(ctx, "read the cluster's identity", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.MemberList(ctx, clientv3.WithSerializable())
		if err == nil {
			id = resp.Header.ClusterId
		}
		return err
	})
	return id, err
}

// Members lists the members in the order of their names, with the state of
// those that answer.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	var listed []*etcdserverpb.Member
	alarms := map[uint64][]string{}
	var client *clientv3.Client
	err := s.request(ctx, "list members", func(ctx context.Context, c *clientv3.Client) error {
		client = c
		// A member in the minority knows the list too.
		resp, err := c.MemberList(ctx, clientv3.WithSerializable())
		if err != nil {
			return err
		}
		listed = resp.Members
		// Alarms come through consensus: without a leader there is no answer.
		quick, cancel := context.WithTimeout(ctx, memberTimeout)
		defer cancel()
		if resp, err := c.AlarmList(quick); err == nil {
			for _, a := range resp.Alarms {
				alarms[a.MemberID] = append(alarms[a.MemberID], a.Alarm.String())
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	members := make([]Member, len(listed))
	var group sync.WaitGroup
	for i, m := range listed {
		members[i] = Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.IsLearner, Alarms: alarms[m.ID]}
		group.Go(func() { s.interview(ctx, client, &members[i]) })
	}
	group.Wait()
	slices.SortFunc(members, func(a, b Member) int { return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return members, nil
}

// interview asks one member for its state.
func (s *Store) interview(ctx context.Context, c *clientv3.Client, m *Member) {
	m.Err = fmt.Errorf("%w: it has no address for clients", datastore.ErrUnavailable)
	for _, u := range s.usable(m.ClientURLs) {
		st, err := s.status(ctx, c, u)
		if err != nil {
			m.Err = fmt.Errorf("%w: %s does not answer", datastore.ErrUnavailable, u)
			if errors.Is(err, datastore.ErrDenied) {
				m.Err = err
			}
			continue
		}
		if st.Header.MemberId != m.ID {
			m.Err = fmt.Errorf("%w: another server answers at %s", datastore.ErrUnavailable, u)
			continue
		}
		m.Err, m.Leader, m.Version, m.Size, m.InUse = nil, st.Leader == m.ID, st.Version, st.DbSize, st.DbSizeInUse
		return
	}
}

// status asks the server at one URL for its state.
func (s *Store) status(ctx context.Context, c *clientv3.Client, endpoint string) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	if s.sameWay(endpoint) {
		return c.Status(ctx, endpoint)
	}
	far, err := s.dialMember(endpoint)
	if err != nil {
		return nil, err
	}
	defer far.Close()
	return far.Status(ctx, endpoint)
}

// sameWay says whether the client in use can ask the server at one URL too. The
// in-process client knows its own server only; one without TLS, none with.
func (s *Store) sameWay(endpoint string) bool {
	return len(s.config.Endpoints) > 0 && strings.HasPrefix(endpoint, "https://") == (s.tls != nil)
}

// dialMember is a client of one server, to be closed.
func (s *Store) dialMember(endpoint string) (*clientv3.Client, error) {
	cc := clientv3.Config{Endpoints: []string{endpoint}, Logger: ZapLogger(s.log, slog.LevelError)}
	if strings.HasPrefix(endpoint, "https://") {
		if s.far == nil {
			return nil, fmt.Errorf("%w: %s wants TLS: set ETCD_CA_CERT_FILE, ETCD_CERT_FILE and ETCD_KEY_FILE", datastore.ErrDenied, endpoint)
		}
		cc.TLS = s.far.Clone()
	}
	return clientv3.New(cc)
}

// RemoveMember takes a member out of the cluster. Its data are of no use
// afterwards.
func (s *Store) RemoveMember(ctx context.Context, id uint64) error {
	return s.request(ctx, fmt.Sprintf("remove member %x", id), func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.MemberRemove(ctx, id)
		return err
	})
}

// Defragment gives the free pages of one member's database back to its disk. The
// member answers nothing meanwhile.
func (s *Store) Defragment(ctx context.Context, m Member) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	for _, u := range s.usable(m.ClientURLs) {
		if err = s.defragment(ctx, c, u); err == nil {
			return nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: it has no address for clients", datastore.ErrUnavailable)
	}
	return fmt.Errorf("defragment member %s: %w", m.Name, s.classify(ctx, err, ""))
}

func (s *Store) defragment(ctx context.Context, c *clientv3.Client, endpoint string) error {
	if !s.sameWay(endpoint) {
		far, err := s.dialMember(endpoint)
		if err != nil {
			return err
		}
		defer far.Close()
		c = far
	}
	_, err := c.Defragment(ctx, endpoint)
	return err
}

// Compact forgets the history before the present, which makes its space free
// pages. Watches that are behind list again.
func (s *Store) Compact(ctx context.Context) error {
	return s.request(ctx, "compact", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.Get(ctx, "/calico/", clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		_, err = c.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
		if err != nil && strings.Contains(err.Error(), "has been compacted") {
			return nil // it is already
		}
		return err
	})
}

// Disarm ends the alarms of all members. An alarm whose cause lasts comes again.
func (s *Store) Disarm(ctx context.Context) (disarmed int, err error) {
	err = s.request(ctx, "disarm alarms", func(ctx context.Context, c *clientv3.Client) error {
		resp, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		if err == nil {
			disarmed = len(resp.Alarms)
		}
		return err
	})
	return disarmed, err
}

// alarmText is how a member's status names an alarm; protobuf's text format varies
// its spaces.
var alarmText = regexp.MustCompile(`memberID:\s*(\d+)\s+alarm:\s*(\w+)`)

// Alarms are those of all members, one text each: "NOSPACE on h1". A member is
// asked for its status, since the list of alarms is an entry in etcd's log each
// time somebody asks for it.
func (s *Store) Alarms(ctx context.Context) ([]string, error) {
	var out []string
	err := s.request(ctx, "list alarms", func(ctx context.Context, c *clientv3.Client) error {
		endpoints := s.Endpoints()
		var st *clientv3.StatusResponse
		var err error
		for _, u := range endpoints {
			if s.led != nil {
				st, err = c.Status(ctx, u) // our own server's, without a connection
			} else {
				st, err = s.status(ctx, c, u)
			}
			if err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, text := range st.Errors {
			m := alarmText.FindStringSubmatch(text)
			if m == nil {
				continue
			}
			if len(names) == 0 {
				list, err := c.MemberList(ctx, clientv3.WithSerializable())
				if err != nil {
					return err
				}
				for _, member := range list.Members {
					names[strconv.FormatUint(member.ID, 10)] = member.Name
				}
			}
			out = append(out, m[2]+" on "+cmp.Or(names[m[1]], "member "+m[1]))
		}
		slices.Sort(out)
		return nil
	})
	return out, err
}

// outward are the URLs that other hosts can use.
func outward(urls []string) []string {
	var out []string
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "localhost" {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && (a.IsLoopback() || a.IsUnspecified()) {
			continue
		}
		out = append(out, text)
	}
	return out
}

// usable are the URLs at which a member can be reached from here. Those of its
// own host are, if they are all there is and we reach the cluster in that way.
func (s *Store) usable(urls []string) []string {
	if far := outward(urls); len(far) > 0 || len(outward(s.Endpoints())) > 0 {
		return far
	}
	return urls
}

// Cluster is the identity of the cluster in use as far as it is known, else 0.
// SetCluster says which one an earlier process has used.
func (s *Store) Cluster() uint64 { return s.cluster.Load() }

// SetCluster is to be called before Refresh.
func (s *Store) SetCluster(id uint64) { s.cluster.Store(id) }

// Refresh learns the addresses of all members and uses them from now on beside
// those configured, so that the loss of any member is survived. An address at
// which another cluster answers is not used: a member that lost its disk and
// began anew by mistake would otherwise serve every third request from an empty
// store. It returns the addresses in use.
func (s *Store) Refresh(ctx context.Context) ([]string, error) {
	var client *clientv3.Client
	var cluster uint64
	candidates := s.Endpoints()
	err := s.request(ctx, "list members", func(ctx context.Context, c *clientv3.Client) error {
		client = c
		resp, err := c.MemberList(ctx) // linearizable: the answer of a cluster with a majority
		if err != nil {
			return err
		}
		cluster = resp.Header.ClusterId
		for _, m := range resp.Members {
			if m.IsLearner || m.Name == "" {
				continue
			}
			for _, u := range s.usable(m.ClientURLs) {
				if strings.HasPrefix(u, "https://") == (s.tls != nil) && !slices.Contains(candidates, u) {
					candidates = append(candidates, u)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	known := s.cluster.Load()
	if known == 0 {
		s.cluster.Store(cluster)
	} else if known != cluster { // whoever answered is the stranger, unless there is nobody else
		cluster = known
	}
	members := s.sort(ctx, client, candidates, &cluster)
	s.cluster.Store(cluster)
	s.setEndpoints(client, members)
	return members, nil
}

// sort returns the candidates without those at which another cluster answers.
// When only another cluster answers, that is the cluster from now on.
func (s *Store) sort(ctx context.Context, c *clientv3.Client, candidates []string, cluster *uint64) []string {
	ids := make([]uint64, len(candidates)) // 0: no answer
	var group sync.WaitGroup
	for i, u := range candidates {
		group.Go(func() {
			if st, err := s.status(ctx, c, u); err == nil {
				ids[i] = st.Header.ClusterId
			}
		})
	}
	group.Wait()
	if !slices.Contains(ids, *cluster) {
		for _, id := range ids {
			if id != 0 {
				*cluster = id
				break
			}
		}
	}
	var members []string
	for i, u := range candidates {
		if ids[i] == 0 || ids[i] == *cluster {
			members = append(members, u)
			continue
		}
		s.log.Error("another etcd cluster answers at this address; it is not used", "endpoint", u, "cluster", fmt.Sprintf("%x", ids[i]), "ours", fmt.Sprintf("%x", *cluster))
	}
	return members
}

func (s *Store) setEndpoints(c *clientv3.Client, members []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || slices.Equal(s.endpoints, members) || len(members) == 0 {
		return
	}
	s.endpoints = members
	c.SetEndpoints(members...)
}
