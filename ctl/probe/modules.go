package probe

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Module is a module of the kernel that Calico asks for.
type Module struct {
	Name     string
	Optional bool
	config   string // the kernel's configuration that builds it in
}

// Modules lists what Calico's own check looks for (spec/calico.md §7).
func Modules() []Module {
	return []Module{
		{"ip_set", false, "IP_SET"},
		{"ip_tables", false, "IP_NF_IPTABLES"},
		{"ip6_tables", true, "IP6_NF_IPTABLES"},
		{"ipt_ipvs", false, "NETFILTER_XT_MATCH_IPVS"},
		{"vfio-pci", false, "VFIO"},
		{"xt_bpf", true, "BPF"},
		{"ipt_REJECT", false, "NFT_REJECT"},
		{"xt_rpfilter", false, "IP_NF_MATCH_RPFILTER"},
		{"nf_conntrack_netlink", false, "NF_CT_NETLINK"},
		{"xt_addrtype", false, "NETFILTER_XT_MATCH_ADDRTYPE"},
		{"xt_conntrack", false, "NETFILTER_XT_MATCH_CONNTRACK"},
		{"xt_mark", false, "NETFILTER_XT_MARK"},
		{"xt_multiport", false, "NETFILTER_XT_MATCH_MULTIPORT"},
		{"xt_set", false, "NETFILTER_XT_SET"},
		{"xt_u32", true, "NETFILTER_XT_MATCH_U32"},
	}
}

// Files is where the kernel describes itself.
type Files struct {
	Root    string // "" for the machine's own
	Release string // of the kernel, as uname -r says
	Config  string // the configuration to read instead of the usual places; may be empty
}

// maxFile bounds what is read of one file.
const maxFile = 16 << 20

// Present says which of the modules are loaded, can be loaded or are built in.
// A configuration that is named must be readable.
func (f Files) Present() (map[string]bool, error) {
	config, err := f.config()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, place := range []string{"proc/modules", "lib/modules/" + f.Release + "/modules.dep", "lib/modules/" + f.Release + "/modules.builtin"} {
		f.readNames(place, known)
	}
	present := map[string]bool{}
	for _, m := range Modules() {
		present[m.Name] = known[normalName(m.Name)] || config[m.config]
	}
	return present, nil
}

// normalName: the kernel takes - and _ for the same.
func normalName(module string) string { return strings.ReplaceAll(module, "-", "_") }

// readNames reads the names at the beginnings of a file's lines.
func (f Files) readNames(place string, into map[string]bool) {
	text, err := readLimited(filepath.Join("/", f.Root, place))
	if err != nil {
		return // a kernel without modules has no such file
	}
	for line := range strings.Lines(string(text)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		name := filepath.Base(strings.TrimSuffix(word, ":"))
		name, _, _ = strings.Cut(name, ".ko")
		into[normalName(name)] = true
	}
}

// config reads which options are built in or modules.
func (f Files) config() (map[string]bool, error) {
	places := []string{
		"proc/config.gz", "boot/config-" + f.Release, "lib/modules/" + f.Release + "/build/.config",
		"usr/src/linux-headers-" + f.Release + "/.config", "usr/src/linux/.config",
	}
	for i, p := range places {
		places[i] = filepath.Join("/", f.Root, p)
	}
	if f.Config != "" {
		places = []string{f.Config}
	}
	for _, place := range places {
		text, err := readLimited(place)
		if err != nil {
			if f.Config != "" {
				return nil, fmt.Errorf("read kernel configuration: %w", err)
			}
			continue
		}
		return parseConfig(text), nil
	}
	return nil, nil
}

func parseConfig(text []byte) map[string]bool {
	options := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if name, isOption := strings.CutPrefix(name, "CONFIG_"); ok && isOption && (value == "y" || value == "m") {
			options[name] = true
		}
	}
	return options
}

// readLimited reads a file, unpacking it when it is compressed.
func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	head, _ := in.Peek(2)
	var r io.Reader = in
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		if r, err = gzip.NewReader(in); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return io.ReadAll(io.LimitReader(r, maxFile))
}
