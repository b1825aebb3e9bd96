package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Topology is the lab file as it is written: what exists and what joins what.
// Addresses stay text here; NewPlan resolves them.
type Topology struct {
	// Name of the lab; empty means the name given on the command line.
	Name       string      `json:"name,omitempty"`
	Subnets    []Subnet    `json:"subnets,omitempty"`
	Routers    []Router    `json:"routers,omitempty"`
	Hosts      []Host      `json:"hosts,omitempty"`
	Etcd       Etcd        `json:"etcd,omitempty"`
	Containers []Container `json:"containers,omitempty"`
}

// Subnet is one broadcast domain of the underlay.
type Subnet struct {
	Name string `json:"name"`
	CIDR string `json:"cidr"`
	// CIDR6 gives the hosts of the subnet and their containers IPv6 as well.
	CIDR6 string `json:"cidr6,omitempty"`
	// MTU of every link of the subnet, in bytes; 0 means 1500.
	MTU int `json:"mtu,omitempty"`
}

// Router joins subnets and is the default gateway in each of them.
type Router struct {
	Name    string   `json:"name"`
	Subnets []string `json:"subnets"`
}

// Host is one machine of the lab.
type Host struct {
	Name string `json:"name"`
	// Subnet may be left out when the topology has exactly one.
	Subnet   string `json:"subnet,omitempty"`
	Address  string `json:"address,omitempty"`
	Address6 string `json:"address6,omitempty"`
	// ASNumber is handed to the agent in the variable AS; 0 leaves the default.
	ASNumber uint32            `json:"asNumber,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
	// Args are added to `maneki node run`.
	Args []string `json:"args,omitempty"`
	// Agent is "auto" (started with the lab) or "manual" (started by
	// `maneki lab agent start`); empty means auto.
	Agent string `json:"agent,omitempty"`
}

// Etcd says where the datastore of the lab is.
type Etcd struct {
	// Mode is "embedded" (agents keep it) or "external" (the etcd binary found in
	// PATH runs on each of Hosts); empty means embedded.
	Mode string `json:"mode,omitempty"`
	// Hosts are its members. With the embedded etcd the first must be the lab's
	// first host, which the others join; none means that one alone.
	Hosts []string `json:"hosts,omitempty"`
	// Args are added to the command line of each external etcd, such as
	// --enable-v2=true for a dockerd with a cluster store.
	Args []string `json:"args,omitempty"`
}

// Container is attached when the lab comes up.
type Container struct {
	Name string `json:"name"`
	Host string `json:"host"`
	// Namespace of the workload; empty means "default".
	Namespace string            `json:"namespace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// The values of Etcd.Mode and Host.Agent.
const (
	EtcdEmbedded = "embedded"
	EtcdExternal = "external"
	AgentAuto    = "auto"
	AgentManual  = "manual"
)

// Limits of a topology. They keep a lab inside what one machine can run.
const (
	MaxHosts      = 64
	MaxContainers = 1000
	// MaxNameLen leaves room for a switch port named after the member
	// (IFNAMSIZ is 16 with the final zero byte).
	MaxNameLen = 15
)

var (
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	labelPattern = regexp.MustCompile(`^([A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	valuePattern = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
)

// reservedNames are devices of the switch namespaces, where ports bear the
// names of the members, and the two names that mean every device in sysctl.
var reservedNames = []string{"lo", bridgeName, "all", "default"}

// bridgeName is the bridge in every switch namespace.
const bridgeName = "br0"

// DefaultTopology is n hosts h1..hn on one subnet 172.18.0.0/24 with the
// embedded etcd.
func DefaultTopology(n int) Topology {
	t := Topology{Subnets: []Subnet{{Name: "net1", CIDR: "172.18.0.0/24"}}}
	for i := range n {
		t.Hosts = append(t.Hosts, Host{Name: fmt.Sprintf("h%d", i+1), Subnet: "net1"})
	}
	return t
}

// ParseTopology reads a lab file (YAML or JSON). It is strict: an unknown or
// repeated field, a wrong type or an impossible value is an error that names
// the field, the value and what is allowed.
func ParseTopology(data []byte) (Topology, error) {
	t, err := parseTopology(data)
	if err != nil {
		return Topology{}, classified{ErrInput, err.Error()}
	}
	return t, nil
}

func parseTopology(data []byte) (Topology, error) {
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return Topology{}, fmt.Errorf("parse topology: %s", oneLine(err))
	}
	if err := checkFields(raw); err != nil {
		return Topology{}, err
	}
	var t Topology
	if err := json.Unmarshal(raw, &t); err != nil {
		return Topology{}, typeError(err)
	}
	t.setDefaults()
	if err := t.Validate(); err != nil {
		return Topology{}, err
	}
	return t, nil
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

func typeError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Errorf("topology: field %s: %s is not allowed here, want %s",
			wrong.Field, article(wrong.Value), typeName(wrong.Type))
	}
	return fmt.Errorf("parse topology: %s", oneLine(err))
}

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiou") {
		return "an " + noun
	}
	return "a " + noun
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "fields"
	case reflect.Int, reflect.Uint32:
		return "a whole number"
	default:
		return "a " + t.Kind().String()
	}
}

// checkFields refuses fields that the format does not have. The decoder's own
// message names neither the place nor what may stand there.
func checkFields(raw []byte) error {
	top, err := fieldsOf[Topology]("", raw)
	if err != nil {
		return err
	}
	if etcd, ok := top["etcd"]; ok {
		if _, err := fieldsOf[Etcd]("etcd.", etcd); err != nil {
			return err
		}
	}
	return errors.Join(
		checkList[Subnet]("subnets", top["subnets"]),
		checkList[Router]("routers", top["routers"]),
		checkList[Host]("hosts", top["hosts"]),
		checkList[Container]("containers", top["containers"]),
	)
}

func checkList[T interface {
	Subnet | Router | Host | Container
}](field string, raw json.RawMessage) error {
	var items []json.RawMessage
	if len(raw) == 0 || json.Unmarshal(raw, &items) != nil {
		return nil // the typed decoder names the wrong type
	}
	for i, item := range items {
		if _, err := fieldsOf[T](fmt.Sprintf("%s[%d].", field, i), item); err != nil {
			return err
		}
	}
	return nil
}

func fieldsOf[T interface {
	Topology | Etcd | Subnet | Router | Host | Container
}](path string, raw json.RawMessage) (map[string]json.RawMessage, error) {
	var have map[string]json.RawMessage
	if err := json.Unmarshal(raw, &have); err != nil {
		place := strings.TrimSuffix(path, ".")
		if place == "" {
			return nil, fmt.Errorf("topology: %s is not a lab file, want fields %s",
				shorten(raw), strings.Join(jsonFields(reflect.TypeFor[T]()), ", "))
		}
		return nil, fmt.Errorf("topology: field %s: %s is not allowed here, want fields %s",
			place, shorten(raw), strings.Join(jsonFields(reflect.TypeFor[T]()), ", "))
	}
	allowed := jsonFields(reflect.TypeFor[T]())
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if !slices.Contains(allowed, name) {
			return nil, fmt.Errorf("topology: unknown field %s%s, allowed: %s",
				path, name, strings.Join(allowed, ", "))
		}
	}
	return have, nil
}

func shorten(raw []byte) string {
	s := string(bytes.TrimSpace(raw))
	if len(s) > 40 {
		s = s[:40] + "..."
	}
	return s
}

func jsonFields(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// setDefaults fills in what may be left out.
func (t *Topology) setDefaults() {
	if len(t.Subnets) == 0 && len(t.Routers) == 0 {
		t.Subnets = DefaultTopology(0).Subnets
	}
	if len(t.Hosts) == 0 {
		t.Hosts = DefaultTopology(3).Hosts
		for i := range t.Hosts {
			t.Hosts[i].Subnet = t.Subnets[0].Name
		}
	}
	for i := range t.Hosts {
		if t.Hosts[i].Subnet == "" && len(t.Subnets) == 1 {
			t.Hosts[i].Subnet = t.Subnets[0].Name
		}
	}
}

// Validate checks names, references and values. Addresses are checked by
// NewPlan, which Validate calls last.
func (t Topology) Validate() error {
	if err := t.checkNames(); err != nil {
		return err
	}
	for i, r := range t.Routers {
		if err := t.checkRouter(i, r); err != nil {
			return err
		}
	}
	for i, h := range t.Hosts {
		if err := t.checkHost(i, h); err != nil {
			return err
		}
	}
	if err := t.checkEtcd(); err != nil {
		return err
	}
	for i, c := range t.Containers {
		if err := t.checkContainer(i, c); err != nil {
			return err
		}
	}
	_, err := NewPlan(t)
	return err
}

// checkName checks the name of a lab or of one of its members.
func checkName(field, name string) error {
	if len(name) > MaxNameLen || !namePattern.MatchString(name) {
		return fmt.Errorf("topology: field %s: name %q is not allowed, want 1 to %d of a-z, 0-9 and - (not at the ends)",
			field, name, MaxNameLen)
	}
	if slices.Contains(reservedNames, name) {
		return fmt.Errorf("topology: field %s: name %q is reserved (%s)", field, name, strings.Join(reservedNames, ", "))
	}
	return nil
}

// checkNames makes sure that a name means one thing in the whole lab: state
// directories, switch ports and `lab exec NAME` rely on it.
func (t Topology) checkNames() error {
	if t.Name != "" {
		if err := checkName("name", t.Name); err != nil {
			return err
		}
	}
	if len(t.Hosts) > MaxHosts {
		return fmt.Errorf("topology: field hosts: %d hosts, at most %d are allowed", len(t.Hosts), MaxHosts)
	}
	if len(t.Containers) > MaxContainers {
		return fmt.Errorf("topology: field containers: %d containers, at most %d are allowed", len(t.Containers), MaxContainers)
	}
	seen := map[string]string{}
	for _, e := range t.entries() {
		if err := checkName(e.field, e.name); err != nil {
			return err
		}
		if first, dup := seen[e.name]; dup {
			return fmt.Errorf("topology: field %s: name %q is already used by %s, every name must be unique",
				e.field, e.name, first)
		}
		seen[e.name] = e.field
	}
	return nil
}

type entry struct{ field, name string }

func (t Topology) entries() []entry {
	var all []entry
	for i, s := range t.Subnets {
		all = append(all, entry{fmt.Sprintf("subnets[%d].name", i), s.Name})
	}
	for i, r := range t.Routers {
		all = append(all, entry{fmt.Sprintf("routers[%d].name", i), r.Name})
	}
	for i, h := range t.Hosts {
		all = append(all, entry{fmt.Sprintf("hosts[%d].name", i), h.Name})
	}
	for i, c := range t.Containers {
		all = append(all, entry{fmt.Sprintf("containers[%d].name", i), c.Name})
	}
	return all
}

func (t Topology) subnetNames() []string {
	var names []string
	for _, s := range t.Subnets {
		names = append(names, s.Name)
	}
	return names
}

func (t Topology) hostNames() []string {
	var names []string
	for _, h := range t.Hosts {
		names = append(names, h.Name)
	}
	return names
}

func oneOf(field, value string, allowed []string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("topology: field %s: %q does not exist, allowed: %s", field, value, strings.Join(allowed, ", "))
}

func (t Topology) checkRouter(i int, r Router) error {
	if len(r.Subnets) == 0 {
		return fmt.Errorf("topology: field routers[%d].subnets: empty, want at least one of: %s",
			i, strings.Join(t.subnetNames(), ", "))
	}
	for j, name := range r.Subnets {
		field := fmt.Sprintf("routers[%d].subnets[%d]", i, j)
		if err := oneOf(field, name, t.subnetNames()); err != nil {
			return err
		}
		if slices.Contains(r.Subnets[:j], name) {
			return fmt.Errorf("topology: field %s: %q is listed twice", field, name)
		}
	}
	return nil
}

func (t Topology) checkHost(i int, h Host) error {
	at := func(f string) string { return fmt.Sprintf("hosts[%d].%s", i, f) }
	if err := oneOf(at("subnet"), h.Subnet, t.subnetNames()); err != nil {
		return err
	}
	if h.Agent != "" && h.Agent != AgentAuto && h.Agent != AgentManual {
		return fmt.Errorf("topology: field %s: %q is not allowed, allowed: %s, %s", at("agent"), h.Agent, AgentAuto, AgentManual)
	}
	for _, k := range slices.Sorted(maps.Keys(h.Env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(h.Env[k], "\x00") {
			return fmt.Errorf("topology: field %s: %q is not a variable name, want one without = and zero bytes", at("env"), k)
		}
	}
	for j, a := range h.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("topology: field %s: %q holds a zero byte", at(fmt.Sprintf("args[%d]", j)), a)
		}
	}
	return checkLabels("topology: field "+at("labels"), h.Labels)
}

// checkLabels checks keys and values against the label syntax of Kubernetes
// and Calico (optional prefix/, 63 characters).
func checkLabels(field string, labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelPattern.MatchString(k) {
			return fmt.Errorf("%s: key %q is not allowed, want [prefix/]name of up to 63 letters, digits, - _ .", field, k)
		}
		if !valuePattern.MatchString(labels[k]) {
			return fmt.Errorf("%s: value %q of %s is not allowed, want up to 63 letters, digits, - _ .", field, labels[k], k)
		}
	}
	return nil
}

func (t Topology) checkEtcd() error {
	switch t.Etcd.Mode {
	case "", EtcdEmbedded:
		if len(t.Etcd.Hosts) > 0 && t.Etcd.Hosts[0] != t.Hosts[0].Name {
			return fmt.Errorf("topology: field etcd.hosts[0]: %q is not allowed with mode %s, want the first host (%s), which the others join",
				t.Etcd.Hosts[0], EtcdEmbedded, t.Hosts[0].Name)
		}
		if len(t.Etcd.Args) > 0 {
			return fmt.Errorf("topology: field etcd.args: not allowed with mode %s", EtcdEmbedded)
		}
		if t.Hosts[0].Agent == AgentManual {
			return fmt.Errorf("topology: field hosts[0].agent: %q is not allowed for the host of the embedded etcd", AgentManual)
		}
	case EtcdExternal:
		if len(t.Etcd.Hosts) == 0 {
			return fmt.Errorf("topology: field etcd.hosts: empty, want at least one of: %s", strings.Join(t.hostNames(), ", "))
		}
	default:
		return fmt.Errorf("topology: field etcd.mode: %q is not allowed, allowed: %s, %s", t.Etcd.Mode, EtcdEmbedded, EtcdExternal)
	}
	for i, a := range t.Etcd.Args {
		if strings.Contains(a, "\x00") {
			return fmt.Errorf("topology: field etcd.args[%d]: %q holds a zero byte", i, a)
		}
	}
	for i, name := range t.Etcd.Hosts {
		field := fmt.Sprintf("etcd.hosts[%d]", i)
		if err := oneOf(field, name, t.hostNames()); err != nil {
			return err
		}
		if slices.Contains(t.Etcd.Hosts[:i], name) {
			return fmt.Errorf("topology: field %s: %q is listed twice", field, name)
		}
	}
	return nil
}

func (t Topology) checkContainer(i int, c Container) error {
	at := func(f string) string { return fmt.Sprintf("containers[%d].%s", i, f) }
	if err := oneOf(at("host"), c.Host, t.hostNames()); err != nil {
		return err
	}
	for _, h := range t.Hosts {
		if h.Name == c.Host && h.Agent == AgentManual {
			return fmt.Errorf("topology: field %s: agent of host %q is %s, so nothing can be attached there yet", at("host"), c.Host, AgentManual)
		}
	}
	return c.check("topology: field "+at("namespace"), "topology: field "+at("labels"))
}

// check covers what `lab run` and a lab file have in common.
func (c Container) check(nsField, labelField string) error {
	if c.Namespace != "" && (len(c.Namespace) > 63 || !namePattern.MatchString(c.Namespace)) {
		return fmt.Errorf("%s: %q is not allowed, want up to 63 of a-z, 0-9 and - (not at the ends)", nsField, c.Namespace)
	}
	return checkLabels(labelField, c.Labels)
}
