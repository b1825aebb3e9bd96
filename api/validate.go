package api

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/manekinet/maneki/selector"
)

// Limits of names (RFC 1123 as Kubernetes applies it).
const (
	maxNameLength       = 253
	maxLabelLength      = 63
	maxAnnotationsBytes = 256 << 10
)

const nameReason = "a name is at most 253 lower case letters, digits, '-' and '.', and starts and ends with a letter or digit"

// ValidName reports whether s can name an object: an RFC 1123 subdomain in lower case.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > maxNameLength {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isWord(part, isLowerAlnum, "-") {
			return false
		}
	}
	return true
}

// isWord reports whether s starts and ends with an accepted character and
// holds besides only accepted ones and those of inner.
func isWord(s string, ok func(byte) bool, inner string) bool {
	if s == "" || !ok(s[0]) || !ok(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if !ok(s[i]) && strings.IndexByte(inner, s[i]) < 0 {
			return false
		}
	}
	return true
}

func isLowerAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
func isAlnum(c byte) bool      { return isLowerAlnum(c) || c >= 'A' && c <= 'Z' }

// ValidLabelKey reports whether s is a label key: an optional DNS prefix and
// '/', then up to 63 letters, digits, '-', '_' and '.'.
func ValidLabelKey(s string) bool {
	prefix, name, has := strings.Cut(s, "/")
	if !has {
		prefix, name = "", s
	} else if !ValidName(strings.ToLower(prefix)) {
		return false
	}
	return len(name) <= maxLabelLength && isWord(name, isAlnum, "-_.")
}

// ValidLabelValue reports whether s is a label value: empty, or up to 63
// letters, digits, '-', '_' and '.', with a letter or digit at both ends.
func ValidLabelValue(s string) bool {
	return s == "" || len(s) <= maxLabelLength && isWord(s, isAlnum, "-_.")
}

// setType writes the kind and the apiVersion.
func (r *Resource) setType(kind string) {
	r.Kind, r.APIVersion = kind, GroupVersion
}

// checker collects the errors of one object; every path it is given is
// relative to the object and gets the kind in front.
type checker struct {
	FieldErrors
	kind string
}

func (c *checker) add(path, value, reason string) { c.Add(c.kind+"."+path, value, reason) }

// newChecker checks the common head of an object of the kind.
func newChecker(r *Resource, kind string, namespaced bool) *checker {
	c := &checker{kind: kind}
	if r.Kind != "" && r.Kind != kind {
		c.add("Kind", r.Kind, "must be "+kind)
	}
	if r.APIVersion != "" && r.APIVersion != GroupVersion {
		c.add("APIVersion", r.APIVersion, "must be "+GroupVersion)
	}
	c.name("Metadata.Name", r.Name)
	switch {
	case namespaced && r.Namespace == "":
		c.add("Metadata.Namespace", "", kind+" lives in a namespace; name one")
	case namespaced:
		c.name("Metadata.Namespace", r.Namespace)
	case r.Namespace != "":
		c.add("Metadata.Namespace", r.Namespace, kind+" does not live in a namespace")
	}
	if r.GenerateName != "" {
		c.add("Metadata.GenerateName", r.GenerateName, "not supported; give a name")
	}
	c.labels("Metadata.Labels", r.Labels)
	c.annotations(r.Annotations)
	return c
}

func (c *checker) name(path, s string) {
	if !ValidName(s) {
		c.add(path, clip(s), nameReason)
	}
}

func (c *checker) labels(path string, m map[string]string) {
	for _, k := range sortedKeys(m) {
		if !ValidLabelKey(k) {
			c.add(path, clip(k), "a label key is [prefix/]name with at most 63 letters, digits, '-', '_' and '.' in the name")
		}
		if !ValidLabelValue(m[k]) {
			c.add(path+"["+clip(k)+"]", clip(m[k]), "a label value is at most 63 letters, digits, '-', '_' and '.', and starts and ends with a letter or digit")
		}
	}
}

func (c *checker) annotations(m map[string]string) {
	total := 0
	for _, k := range sortedKeys(m) {
		total += len(k) + len(m[k])
		if !ValidLabelKey(k) {
			c.add("Metadata.Annotations", clip(k), "an annotation key is [prefix/]name with at most 63 letters, digits, '-', '_' and '.' in the name")
		}
	}
	if total > maxAnnotationsBytes {
		c.add("Metadata.Annotations", strconv.Itoa(total)+" bytes", "at most 262144 bytes of annotations")
	}
}

// oneOf checks an enumeration; the empty text is left to the caller's default.
func (c *checker) oneOf(path, value string, allowed ...string) {
	if value != "" && !slices.Contains(allowed, value) {
		c.add(path, clip(value), "must be one of "+strings.Join(allowed, ", "))
	}
}

func (c *checker) oneOfPtr(path string, value *string, allowed ...string) {
	if value != nil && !slices.Contains(allowed, *value) {
		c.add(path, clip(*value), "must be one of "+strings.Join(allowed, ", "))
	}
}

func (c *checker) within(path string, value, low, high int) {
	if value < low || value > high {
		c.add(path, strconv.Itoa(value), fmt.Sprintf("must be %d-%d", low, high))
	}
}

func (c *checker) withinPtr(path string, value *int, low, high int) {
	if value != nil {
		c.within(path, *value, low, high)
	}
}

func (c *checker) notNegative(path string, d *Duration) {
	if d != nil && *d < 0 {
		c.add(path, d.String(), "must not be negative")
	}
}

func (c *checker) regexp(path string, s *string) {
	if s == nil {
		return
	}
	if _, err := regexp.Compile(*s); err != nil {
		c.add(path, clip(*s), "not a regular expression: "+err.Error())
	}
}

// cidr checks a prefix and returns it masked. Host bits are an error, since
// the writer probably meant another network or a single address.
func (c *checker) cidr(path, s string) (netip.Prefix, bool) {
	p, err := parsePrefix(s)
	if err != nil {
		c.add(path, clip(s), "not a CIDR such as 192.168.0.0/16 or fd00::/64")
		return netip.Prefix{}, false
	}
	if p != p.Masked() {
		c.add(path, s, "CIDR host bits are set; write "+p.Masked().String())
		return p.Masked(), false
	}
	return p, true
}

// net checks a prefix or a bare address.
func (c *checker) net(path, s string) {
	if _, err := parseAddr(s); err == nil {
		return
	}
	c.cidr(path, s)
}

// addr checks one address of the family (0: either).
func (c *checker) addr(path, s string, family int) (netip.Addr, bool) {
	a, err := parseAddr(s)
	if err != nil || family == 4 && !a.Is4() || family == 6 && !a.Is6() {
		c.add(path, clip(s), "not an "+familyWord(family)+"address")
		return netip.Addr{}, false
	}
	return a, true
}

func familyWord(family int) string {
	switch family {
	case 4:
		return "IPv4 "
	case 6:
		return "IPv6 "
	}
	return "IP "
}

// parseAddr reads an address without a zone; an IPv4 address mapped into IPv6
// is refused since it would name the same address twice.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, err
	}
	if a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("address %s has a zone or is IPv4 mapped into IPv6", s)
	}
	return a, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("prefix %s is IPv4 mapped into IPv6", s)
	}
	return p, nil
}

// canonicalCIDR respells a CIDR in its one text form, host bits kept; anything
// else is returned as it is, for Validate to judge.
func canonicalCIDR(s string) string {
	if p, err := parsePrefix(s); err == nil {
		return p.String()
	}
	if a, err := parseAddr(s); err == nil {
		return a.String()
	}
	return s
}

func canonicalCIDRs(list []string) {
	for i, s := range list {
		list[i] = canonicalCIDR(s)
	}
}

// maskCIDRs respells CIDRs that match packets or addresses. Host bits have no
// meaning there and Calico's own tools accept them, so they are cleared.
func maskCIDRs(list []string) {
	for i, s := range list {
		list[i] = canonicalCIDR(s)
		if p, err := parsePrefix(s); err == nil {
			list[i] = p.Masked().String()
		}
	}
}

// clip shortens a value for an error message, so that one line stays one line.
func clip(s string) string {
	const limit = 120
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	q := strconv.Quote(s)
	q = q[1 : len(q)-1]
	return strings.ReplaceAll(q, `\"`, `"`)
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// selector checks the syntax of a selector; the empty one is fine. global()
// has a meaning only in the namespaceSelector of a rule.
func (c *checker) selector(path, s string, globalAllowed bool) {
	if s == "" {
		return
	}
	parsed, err := selector.Parse(s)
	if err != nil {
		reason := err.Error()
		var syntax *selector.SyntaxError
		if errors.As(err, &syntax) {
			reason = fmt.Sprintf("invalid selector at byte %d: %s", syntax.Pos, clip(syntax.Msg))
		}
		c.add(path, clip(s), reason)
		return
	}
	if parsed.UsesGlobal() && !globalAllowed {
		c.add(path, clip(s), "global() stands only in the namespaceSelector of a rule")
	}
}
