package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config"
	"github.com/manekinet/maneki/docker"
	"github.com/manekinet/maneki/pathmtu"
)

// Errors by which a caller can choose an exit code.
var (
	ErrRootNeeded = errors.New("must run as root")
	ErrBusy       = errors.New("already in use")
	ErrBadOption  = errors.New("bad option")
)

// refusal is an error of one of the classes above that speaks in its own words.
type refusal struct {
	class error
	text  string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.class }

func refuse(class error, format string, args ...any) error {
	return &refusal{class: class, text: fmt.Sprintf(format, args...)}
}

// Where an agent keeps its files unless told otherwise.
const (
	DefaultStateDir = "/var/lib/maneki" // what must survive a reboot
	DefaultRunDir   = "/run/maneki"     // sockets and lock
)

// Options are everything an agent is told from outside, already resolved from
// flags, environment and files. Resolve fills what is empty.
type Options struct {
	Version string
	Log     *slog.Logger
	Notice  func(format string, args ...any) // a line for the person who started the agent

	Node      string // name of this host's Node
	Datastore config.Config
	Wait      bool          // wait for the datastore for ever rather than ConnectTimeout
	Connect   time.Duration // how long to try; 0 means 10 s

	EmbeddedDir  string   // data of the embedded etcd; default StateDir/etcd
	EtcdListen   []string // client URLs of the embedded etcd besides localhost
	EtcdPeers    []string // its URLs for other members; default: the hosts of EtcdListen, port 2380
	Join         []string // client URLs of a cluster of embedded etcds to become a member of
	StateDir     string   // default /var/lib/maneki
	RunDir       string   // default /run/maneki
	NodenameFile string   // default /var/lib/calico/nodename; "-" writes none
	MTUFile      string   // default /var/lib/calico/mtu; "-" writes none

	IP, IP6             string // "autodetect", "none", an address, or an address with its prefix length
	Method, Method6     string // of address detection
	SkipConflictCheck   bool
	ASNumber            uint32 // 0: leave the Node's own
	Labels              map[string]string
	NoDefaultPools      bool
	Pool4, Pool6        PoolOptions
	BGP                 bool // false: networking backend "none"
	InterfacePrefix     string
	Felix               *api.FelixConfigurationSpec // settings that come before every FelixConfiguration; nil: none
	HealthAddr          string                      // host:port; "-" serves none
	MetricsAddr         string
	AutodetectInterval  time.Duration // 0 means 60 s
	SkipEndpointRecover bool          // tests only
	PathPort            string        // UDP, for measuring the paths between hosts; default 9097, "-" measures nothing
	Docker              string        // DockerAuto (also when empty), DockerOn or DockerOff
	DockerScope         string        // of the Docker networks: auto (also when empty), local or global
}

// PoolOptions shape one default pool; CIDR "none" creates none.
type PoolOptions struct {
	CIDR             string
	BlockSize        int
	IPIP, VXLAN      api.EncapMode
	NATOutgoing      bool
	NodeSelector     string
	DisableBGPExport bool
}

// FromEnv reads the environment that calico/node knows (spec/calico.md §9).
// Flags set afterwards take precedence.
func FromEnv(environ func(string) string) (Options, error) {
	e := env{get: environ}
	o := Options{
		Node:               strings.ToLower(e.first("NODENAME", "HOSTNAME")),
		Wait:               e.boolean("WAIT_FOR_DATASTORE", false),
		IP:                 e.or("IP", "autodetect"),
		IP6:                e.or("IP6", "autodetect"),
		Method:             e.get("IP_AUTODETECTION_METHOD"),
		Method6:            e.get("IP6_AUTODETECTION_METHOD"),
		SkipConflictCheck:  e.boolean("DISABLE_NODE_IP_CHECK", false),
		ASNumber:           e.asn("AS"),
		NoDefaultPools:     e.boolean("NO_DEFAULT_POOLS", false),
		Pool4:              e.pool("CALICO_IPV4POOL_", true),
		Pool6:              e.pool("CALICO_IPV6POOL_", false),
		BGP:                e.or("CALICO_NETWORKING_BACKEND", "bird") == "bird",
		InterfacePrefix:    strings.SplitN(e.or("FELIX_INTERFACEPREFIX", "cali"), ",", 2)[0],
		AutodetectInterval: e.duration("AUTODETECT_POLL_INTERVAL"),
		Felix:              e.felix(),
		EtcdListen:         e.list("MANEKI_ETCD_LISTEN"),
		EtcdPeers:          e.list("MANEKI_ETCD_PEER"),
		Join:               e.list("MANEKI_JOIN"),
		PathPort:           e.get("MANEKI_PATH_PROBE_PORT"),
	}
	return o, e.err
}

type env struct {
	get func(string) string
	err error
}

func (e *env) or(name, def string) string {
	if v := e.get(name); v != "" {
		return v
	}
	return def
}

func (e *env) first(names ...string) string {
	for _, n := range names {
		if v := e.get(n); v != "" {
			return v
		}
	}
	return ""
}

// list is a value with commas between its parts.
func (e *env) list(name string) []string {
	return strings.FieldsFunc(e.get(name), func(r rune) bool { return r == ',' || r == ' ' })
}

func (e *env) bad(name, value, allowed string) {
	e.err = errors.Join(e.err, refuse(ErrBadOption, "environment variable %s is %q; allowed: %s", name, value, allowed))
}

func (e *env) boolean(name string, def bool) bool {
	v := strings.ToLower(e.get(name))
	switch v {
	case "":
		return def
	case "true", "1", "yes", "y", "t":
		return true
	case "false", "0", "no", "n", "f":
		return false
	}
	e.bad(name, v, "true or false")
	return def
}

func (e *env) duration(name string) time.Duration {
	v := e.get(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		if d, err = time.ParseDuration(v + "s"); err != nil {
			e.bad(name, v, "a duration such as 60s")
		}
	}
	return d
}

func (e *env) asn(name string) uint32 {
	v := e.get(name)
	if v == "" {
		return 0
	}
	n, err := ParseASN(v)
	if err != nil {
		e.bad(name, v, "1 to 4294967295, or the dotted form 1.10")
	}
	return n
}

func (e *env) pool(prefix string, v4 bool) PoolOptions {
	p := PoolOptions{
		CIDR:             e.get(prefix + "CIDR"),
		IPIP:             api.EncapMode(e.or(prefix+"IPIP", "Never")),
		VXLAN:            api.EncapMode(e.or(prefix+"VXLAN", "Never")),
		NATOutgoing:      e.boolean(prefix+"NAT_OUTGOING", v4),
		NodeSelector:     e.or(prefix+"NODE_SELECTOR", "all()"),
		DisableBGPExport: e.boolean(prefix+"DISABLE_BGP_EXPORT", false),
	}
	if v := e.get(prefix + "BLOCK_SIZE"); v != "" {
		if _, err := fmt.Sscanf(v, "%d", &p.BlockSize); err != nil {
			e.bad(prefix+"BLOCK_SIZE", v, "a number")
		}
	}
	return p
}

// ParseASN reads an AS number, plain or in the dotted form of RFC 5396.
func ParseASN(s string) (uint32, error) {
	var hi, lo uint32
	if strings.Contains(s, ".") {
		if n, err := fmt.Sscanf(s, "%d.%d", &hi, &lo); n != 2 || err != nil || hi > 65535 || lo > 65535 {
			return 0, refuse(ErrBadOption, "AS number %q is not one of 1 to 4294967295", s)
		}
	} else if n, err := fmt.Sscanf(s, "%d", &lo); n != 1 || err != nil {
		return 0, refuse(ErrBadOption, "AS number %q is not one of 1 to 4294967295", s)
	}
	if hi == 0 && lo == 0 {
		return 0, refuse(ErrBadOption, "AS number 0 is reserved")
	}
	return hi<<16 | lo, nil
}

// resolve fills the defaults and refuses what cannot be.
func (o *Options) resolve() error {
	if o.Node == "" {
		h, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read host name: %w", err)
		}
		o.Node = strings.ToLower(h)
	}
	o.setDefaults()
	return o.check()
}

func (o *Options) setDefaults() {
	for _, d := range []struct {
		field *string
		def   string
	}{
		{&o.StateDir, DefaultStateDir},
		{&o.RunDir, DefaultRunDir},
		{&o.NodenameFile, "/var/lib/calico/nodename"},
		{&o.MTUFile, "/var/lib/calico/mtu"},
		{&o.IP, "autodetect"},
		{&o.IP6, "autodetect"},
		{&o.InterfacePrefix, "cali"},
		{&o.HealthAddr, "127.0.0.1:9099"},
		{&o.MetricsAddr, "127.0.0.1:9091"},
		{&o.PathPort, strconv.Itoa(pathmtu.DefaultPort)},
		{&o.Docker, DockerAuto},
		{&o.DockerScope, string(docker.ScopeAuto)},
	} {
		*d.field = cmp.Or(*d.field, d.def)
	}
	o.EmbeddedDir = cmp.Or(o.EmbeddedDir, filepath.Join(o.StateDir, "etcd"))
	o.Connect = cmp.Or(o.Connect, 10*time.Second)
	o.AutodetectInterval = cmp.Or(o.AutodetectInterval, time.Minute)
	if o.Notice == nil {
		o.Notice = func(string, ...any) {}
	}
}

func (o *Options) check() error {
	for _, c := range []struct {
		option, value string
		allowed       []string
	}{
		{"docker", o.Docker, []string{DockerAuto, DockerOn, DockerOff}},
		{"docker-scope", o.DockerScope, []string{string(docker.ScopeAuto), string(docker.ScopeLocal), string(docker.ScopeGlobal)}},
	} {
		if !slices.Contains(c.allowed, c.value) {
			return refuse(ErrBadOption, "%s is %q; allowed: %s", c.option, c.value, strings.Join(c.allowed, ", "))
		}
	}
	if port, err := strconv.ParseUint(o.PathPort, 10, 16); o.PathPort != "-" && (err != nil || port == 0) {
		return refuse(ErrBadOption, "path probe port is %q; allowed: 1 to 65535, or - to measure nothing", o.PathPort)
	}
	if len(o.InterfacePrefix) > 4 {
		return refuse(ErrBadOption, "interface prefix %q is longer than 4 characters", o.InterfacePrefix)
	}
	if err := o.checkEtcd(); err != nil {
		return err
	}
	if err := checkIP("IP", o.IP, true); err != nil {
		return err
	}
	return checkIP("IP6", o.IP6, false)
}

func checkIP(option, value string, v4 bool) error {
	if value == "autodetect" || value == "none" {
		return nil
	}
	text, _, _ := strings.Cut(value, "/")
	a, err := netip.ParseAddr(text)
	if err != nil || a.Is4() != v4 {
		return refuse(ErrBadOption, "%s is %q; allowed: an IPv%d address with or without its prefix length, autodetect, none", option, value, map[bool]int{true: 4, false: 6}[v4])
	}
	return nil
}

// checkEtcd is about the embedded etcd, and whether there is to be one.
func (o *Options) checkEtcd() error {
	if err := o.checkEtcdTLS(); err != nil {
		return err
	}
	for _, f := range []struct {
		flag string
		urls []string
	}{{"--etcd-listen", o.EtcdListen}, {"--etcd-peer", o.EtcdPeers}, {"--join", o.Join}} {
		if len(f.urls) > 0 && f.flag != "--etcd-listen" && o.Datastore.Type != "" {
			return refuse(ErrBadOption, "%s is for hosts that keep the datastore themselves, but %s names one (%s): leave one of the two out", f.flag, o.Datastore.Source, o.Datastore)
		}
		for _, u := range f.urls {
			if err := checkListen(f.flag, u, o.etcdScheme()); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkEtcdTLS is about the certificate of a host that keeps the datastore: the
// same files by which a host uses a datastore of others.
func (o *Options) checkEtcdTLS() error {
	d := o.Datastore
	if d.Type != "" || o.etcdScheme() == "http" {
		return nil
	}
	for _, f := range []struct{ variable, value string }{{"ETCD_CERT_FILE", d.EtcdCertFile}, {"ETCD_KEY_FILE", d.EtcdKeyFile}, {"ETCD_CA_CERT_FILE", d.EtcdCACertFile}} {
		if f.value == "" {
			return refuse(ErrBadOption, "%s is empty: a host that keeps the datastore with TLS needs the files ETCD_CERT_FILE, ETCD_KEY_FILE and ETCD_CA_CERT_FILE", f.variable)
		}
	}
	return nil
}

// etcdScheme is how others reach the embedded etcd: with TLS if there is a
// certificate for it.
func (o *Options) etcdScheme() string {
	if d := o.Datastore; d.EtcdCertFile+d.EtcdKeyFile+d.EtcdCACertFile != "" {
		return "https"
	}
	return "http"
}

func checkListen(flag, text, scheme string) error {
	what := "with an IP address of this host"
	if flag == "--join" {
		what = "with the IP address of a host that keeps the datastore"
	}
	u, err := url.Parse(text)
	if err == nil && u.Scheme == scheme && u.Path == "" {
		if _, err := netip.ParseAddrPort(u.Host); err == nil {
			return nil
		}
	}
	because := ""
	if err == nil && u.Scheme == "https" {
		because = "; https needs ETCD_CERT_FILE, ETCD_KEY_FILE and ETCD_CA_CERT_FILE"
	} else if scheme == "https" {
		because = "; ETCD_CERT_FILE names a certificate"
	}
	return refuse(ErrBadOption, "%s is %q; allowed: %s://ADDRESS:PORT %s%s", flag, text, scheme, what, because)
}

// etcdURLs are where the embedded etcd listens: for clients of other hosts, and
// for other members. own is the host's address, used when nothing is said and
// the host is to be a member.
func (o *Options) etcdURLs(own netip.Addr) (clients, peers []string) {
	clients, peers = o.EtcdListen, o.EtcdPeers
	if len(clients) == 0 && len(o.Join) > 0 {
		clients = []string{o.etcdScheme() + "://" + netip.AddrPortFrom(own, etcdClientPort).String()}
	}
	if len(peers) > 0 {
		return clients, peers
	}
	for _, c := range clients {
		if u, err := url.Parse(c); err == nil {
			if a, err := netip.ParseAddrPort(u.Host); err == nil && !a.Addr().IsUnspecified() {
				peers = append(peers, o.etcdScheme()+"://"+netip.AddrPortFrom(a.Addr(), etcdPeerPort).String())
			}
		}
	}
	return clients, peers
}

// The ports of etcd.
const (
	etcdClientPort = 2379
	etcdPeerPort   = 2380
)

func (o *Options) endpointsFile() string {
	return filepath.Join(o.StateDir, filepath.Base(config.KnownFile))
}
