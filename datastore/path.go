package datastore

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/manekinet/maneki/api"
)

// The roots of Calico's etcd v3 layout (spec/calico.md §1.1).
const (
	resourceRoot   = "/calico/resources/v3/projectcalico.org/"
	blockRoot      = "/calico/ipam/v2/assignment/"
	hostRoot       = "/calico/ipam/v2/host/"
	virtualRoot    = "/calico/ipam/v2/virtual/"
	handleRoot     = "/calico/ipam/v2/handle/"
	ipamConfigPath = "/calico/ipam/v2/config"
)

// The roots of what Calico does not have. They lie below /calico/ so that one
// permission and one `datastore clean` cover them; none of the prefixes that
// Calico lists holds them.
const (
	leaseRoot     = "/calico/maneki/v1/lease/"
	heartbeatRoot = "/calico/maneki/v1/heartbeat/"
)

// The owners of a block affinity, as they are spelled before the colon in
// Key.Namespace and in a block's "affinity" field.
const (
	hostOwner    = "host:"
	virtualOwner = "virtual:"
)

// ipamConfigName is the only name of an IPAMConfig.
const ipamConfigName = "default"

// Range is a half-open range of paths, Start <= path < End.
type Range struct {
	Start, End string
}

// Contains reports whether path lies in the range.
func (r Range) Contains(path string) bool { return r.Start <= path && path < r.End }

// Path is the etcd key of k in Calico's layout (spec/calico.md §1.1). It
// refuses a key that ParsePath could not give back: an unknown kind, a missing
// or superfluous namespace, an empty name, a CIDR that is not in canonical form.
func Path(k Key) (string, error) {
	p, err := buildPath(k)
	if err != nil {
		return "", fmt.Errorf("path of %s: %w", k, err)
	}
	return p, nil
}

func buildPath(k Key) (string, error) {
	if k.Name == "" {
		return "", errors.New("name is empty")
	}
	switch k.Kind {
	case KindBlockAffinity:
		return affinityPath(k)
	case KindIPAMBlock, KindIPAMHandle, KindIPAMConfig, KindIPAMHost, KindLease, KindHeartbeat:
		if k.Namespace != "" {
			return "", fmt.Errorf("namespace %q given, but the kind has none", k.Namespace)
		}
	}
	switch k.Kind {
	case KindIPAMBlock:
		seg, err := cidrSegments(k.Name)
		return blockRoot + seg, err
	case KindIPAMHandle:
		return handleRoot + escape(k.Name), nil
	case KindIPAMHost:
		return hostRoot + escape(k.Name), nil
	case KindLease:
		return leaseRoot + escape(k.Name), nil
	case KindHeartbeat:
		return heartbeatRoot + escape(k.Name), nil
	case KindIPAMConfig:
		if k.Name != ipamConfigName {
			return "", fmt.Errorf("name is %q, the only one is %q", k.Name, ipamConfigName)
		}
		return ipamConfigPath, nil
	}
	return resourcePath(k)
}

func resourcePath(k Key) (string, error) {
	kind, ok := kindTable().byName[k.Kind]
	if !ok {
		return "", fmt.Errorf("unknown kind %q", k.Kind)
	}
	if strings.Contains(k.Name, "/") {
		return "", errors.New(`name holds "/"`)
	}
	if strings.Contains(k.Namespace, "/") {
		return "", errors.New(`namespace holds "/"`)
	}
	p := resourceRoot + kind.Plural + "/"
	switch {
	case kind.Namespaced && k.Namespace == "":
		return "", errors.New("namespace is empty, the kind needs one")
	case !kind.Namespaced && k.Namespace != "":
		return "", fmt.Errorf("namespace %q given, but the kind has none", k.Namespace)
	case kind.Namespaced:
		p += k.Namespace + "/"
	}
	return p + k.Name, nil
}

func affinityPath(k Key) (string, error) {
	root, err := ownerRoot(k.Namespace)
	if err != nil {
		return "", err
	}
	seg, err := cidrSegments(k.Name)
	return root + seg, err
}

// ownerRoot is the folder of one owner's affinities.
func ownerRoot(owner string) (string, error) {
	if host, ok := strings.CutPrefix(owner, hostOwner); ok && host != "" {
		return hostRoot + escape(host) + "/", nil
	}
	if name, ok := strings.CutPrefix(owner, virtualOwner); ok && name != "" {
		return virtualRoot + escape(name) + "/", nil
	}
	return "", fmt.Errorf("owner %q is neither host:<node> nor virtual:<name>", owner)
}

// cidrSegments is the tail of a block's or an affinity's path:
// "ipv4/block/10.65.79.0-26". IPv6 text keeps its colons.
func cidrSegments(cidr string) (string, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return "", fmt.Errorf("name is not a CIDR: %w", err)
	}
	if p.Addr().Is4In6() || p.Masked().String() != cidr {
		return "", fmt.Errorf("name is not a canonical CIDR, that would be %s", netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked())
	}
	family := "ipv4"
	if p.Addr().Is6() {
		family = "ipv6"
	}
	return family + "/block/" + strings.Replace(cidr, "/", "-", 1), nil
}

// Ranges are the parts of the key space in which a query's entries lie, in
// ascending order. A range may hold other kinds too (a host's marker lies
// beside its affinities): what ParsePath says of the key decides.
func Ranges(q Query) ([]Range, error) {
	prefixes, err := queryPrefixes(q)
	if err != nil {
		return nil, fmt.Errorf("path of query for %s: %w", q.Kind, err)
	}
	var rs []Range
	for _, p := range prefixes {
		r := Range{Start: p, End: p + "\x00"} // exactly p
		if strings.HasSuffix(p, "/") {
			r.End = p[:len(p)-1] + "0" // '0' follows '/'
		}
		rs = append(rs, r)
	}
	return rs, nil
}

func queryPrefixes(q Query) ([]string, error) {
	if q.Kind == KindBlockAffinity {
		if q.Namespace == "" {
			return []string{hostRoot, virtualRoot}, nil
		}
		root, err := ownerRoot(q.Namespace)
		return []string{root}, err
	}
	kind, isResource := kindTable().byName[q.Kind]
	if q.Namespace != "" && !(isResource && kind.Namespaced) {
		return nil, fmt.Errorf("namespace %q given, but the kind has none", q.Namespace)
	}
	switch q.Kind {
	case KindIPAMBlock:
		return []string{blockRoot}, nil
	case KindIPAMHandle:
		return []string{handleRoot}, nil
	case KindIPAMHost:
		return []string{hostRoot}, nil
	case KindIPAMConfig:
		return []string{ipamConfigPath}, nil
	case KindLease:
		return []string{leaseRoot}, nil
	case KindHeartbeat:
		return []string{heartbeatRoot}, nil
	}
	if !isResource {
		return nil, fmt.Errorf("unknown kind %q", q.Kind)
	}
	p := resourceRoot + kind.Plural + "/"
	if q.Namespace != "" {
		if strings.Contains(q.Namespace, "/") {
			return nil, errors.New(`namespace holds "/"`)
		}
		p += q.Namespace + "/"
	}
	return []string{p}, nil
}

// Matches reports whether k is one of the keys the query asks for.
func (q Query) Matches(k Key) bool {
	return q.Kind == k.Kind && (q.Namespace == "" || q.Namespace == k.Namespace)
}

// ParsePath is the key whose Path is path; the leading slash may be missing.
// A path in another spelling than Path's (an IPv6 CIDR that is not compressed,
// host bits) is an error: writing the object back would make a second one.
func ParsePath(path string) (Key, error) {
	full := path
	if strings.HasPrefix(path, "calico/") {
		full = "/" + path
	}
	k, err := splitPath(full)
	if err != nil {
		return Key{}, fmt.Errorf("parse datastore path %q: %w", path, err)
	}
	back, err := buildPath(k)
	if err != nil {
		return Key{}, fmt.Errorf("parse datastore path %q: %w", path, err)
	}
	if back != full {
		return Key{}, fmt.Errorf("parse datastore path %q: not canonical, that would be %q", path, back)
	}
	return k, nil
}

var errNotOurs = errors.New("not a path of the datastore's layout")

func splitPath(path string) (Key, error) {
	if path == ipamConfigPath {
		return Key{Kind: KindIPAMConfig, Name: ipamConfigName}, nil
	}
	if rest, ok := strings.CutPrefix(path, handleRoot); ok {
		return Key{Kind: KindIPAMHandle, Name: unescape(rest)}, nil
	}
	if rest, ok := strings.CutPrefix(path, leaseRoot); ok {
		return Key{Kind: KindLease, Name: unescape(rest)}, nil
	}
	if rest, ok := strings.CutPrefix(path, heartbeatRoot); ok {
		return Key{Kind: KindHeartbeat, Name: unescape(rest)}, nil
	}
	if rest, ok := strings.CutPrefix(path, blockRoot); ok {
		cidr, err := parseCIDRSegments(rest)
		return Key{Kind: KindIPAMBlock, Name: cidr}, err
	}
	if rest, ok := strings.CutPrefix(path, hostRoot); ok {
		host, tail, deeper := strings.Cut(rest, "/")
		if !deeper {
			return Key{Kind: KindIPAMHost, Name: unescape(host)}, nil
		}
		return splitAffinity(hostOwner+unescape(host), tail)
	}
	if rest, ok := strings.CutPrefix(path, virtualRoot); ok {
		name, tail, _ := strings.Cut(rest, "/")
		return splitAffinity(virtualOwner+unescape(name), tail)
	}
	if rest, ok := strings.CutPrefix(path, resourceRoot); ok {
		return splitResource(rest)
	}
	return Key{}, errNotOurs
}

func splitAffinity(owner, tail string) (Key, error) {
	cidr, err := parseCIDRSegments(tail)
	return Key{Kind: KindBlockAffinity, Namespace: owner, Name: cidr}, err
}

func splitResource(rest string) (Key, error) {
	plural, tail, _ := strings.Cut(rest, "/")
	kind, ok := kindTable().byPlural[plural]
	if !ok {
		return Key{}, fmt.Errorf("unknown kind %q", plural)
	}
	k := Key{Kind: kind.Name, Name: tail}
	if kind.Namespaced {
		k.Namespace, k.Name, _ = strings.Cut(tail, "/")
	}
	return k, nil
}

// parseCIDRSegments reverses cidrSegments. It leaves the check of the form to
// buildPath.
func parseCIDRSegments(tail string) (string, error) {
	_, name, ok := strings.Cut(tail, "/block/")
	if !ok {
		return "", errNotOurs
	}
	return strings.Replace(name, "-", "/", 1), nil
}

// escape makes one path segment of a name, with Calico's two substitutions in
// this order; unescape reverses them in reverse order.
func escape(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "%", "%25"), "/", "%2f")
}

func unescape(segment string) string {
	return strings.ReplaceAll(strings.ReplaceAll(segment, "%2f", "/"), "%25", "%")
}

type kinds struct {
	byName, byPlural map[string]api.Kind
}

// kindTable indexes api.Kinds, which is the same for the life of the program.
var kindTable = sync.OnceValue(func() kinds {
	t := kinds{byName: map[string]api.Kind{}, byPlural: map[string]api.Kind{}}
	for _, k := range api.Kinds() {
		t.byName[k.Name] = k
		t.byPlural[k.Plural] = k
	}
	return t
})
