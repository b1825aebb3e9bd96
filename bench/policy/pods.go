package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pod is a container that the CNI plugin has attached.
type pod struct {
	id    string
	name  string
	space space
	addr  netip.Addr
}

// pods are containers of this host.
type pods struct {
	shim string
	list []pod
}

// attachAll attaches n containers, each with a label of its own.
func attachAll(shim string, n int) (*pods, error) {
	p := &pods{shim: shim}
	for i := range n {
		s, err := newSpace()
		if err != nil {
			return nil, errors.Join(err, p.detachAll())
		}
		c := pod{id: fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "bench %d %d", os.Getpid(), i))), name: fmt.Sprintf("pod-%d", i), space: s}
		p.list = append(p.list, c)
		if p.list[i].addr, err = p.add(c); err != nil {
			return nil, errors.Join(err, p.detachAll())
		}
	}
	return p, nil
}

func (p *pods) call(verb string, c pod) ([]byte, error) {
	cmd := exec.Command(p.shim)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + filepath.Dir(p.shim), "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + c.id,
		"CNI_IFNAME=eth0", fmt.Sprintf("CNI_NETNS=/proc/%d/fd/%d", os.Getpid(), c.space.file.Fd()),
	}
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","type":"maneki-cni","ipam":{"type":"maneki-ipam","assign_ipv6":"false"},
		"args":{"maneki.net":{"namespace":"default","name":%q,"labels":{"bench":%[1]q}}}}`, c.name))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s%s", verb, c.name, err, out, stderr.Bytes())
	}
	return out, nil
}

// add attaches a container and returns its IPv4 address.
func (p *pods) add(c pod) (netip.Addr, error) {
	out, err := p.call("ADD", c)
	if err != nil {
		return netip.Addr{}, err
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return netip.Addr{}, fmt.Errorf("ADD %s: result: %w", c.name, err)
	}
	for _, ip := range result.IPs {
		if ip.Address.Addr().Is4() {
			return ip.Address.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("ADD %s: no IPv4 address in %s", c.name, out)
}

func (p *pods) detachAll() error {
	var errs []error
	for _, c := range p.list {
		_, err := p.call("DEL", c)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// host runs a command in this program's own namespaces.
func (p *pods) host(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
