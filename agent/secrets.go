package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
)

// secretsDir holds the passwords of BGP sessions: <dir>/<name>/<key>, as a
// Kubernetes secret of that name looks when it is mounted there.
const secretsDir = "/etc/maneki/secrets"

// secretsInterval is how soon a password that was changed on the disk is used.
const secretsInterval = 5 * time.Second

// maxPassword is what TCP MD5 signatures can take, in octets (RFC 2385).
const maxPassword = 80

// withPasswords returns cfg with the passwords of its peers filled in. A peer
// whose password cannot be read is left out, with a line that says why: it must
// never get a session without one. The passwords go nowhere but into the
// speaker, which keeps them from its status.
func withPasswords(dir string, cfg bgp.Config, secrets map[netip.Addr]calc.Secret) (bgp.Config, []string) {
	if len(secrets) == 0 {
		return cfg, nil
	}
	cfg.Peers = maps.Clone(cfg.Peers)
	var missing []string
	for addr, s := range secrets {
		peer, wanted := cfg.Peers[addr]
		if !wanted {
			continue
		}
		password, err := readSecret(dir, s)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: password of BGP peer %s: %v; no session is made", s.Of, addr, err))
			delete(cfg.Peers, addr)
			continue
		}
		peer.Password = password
		cfg.Peers[addr] = peer
	}
	slices.Sort(missing)
	return cfg, missing
}

// readSecret reads one password; a final line end is not part of it. The error
// does not repeat what the file holds.
func readSecret(dir string, s calc.Secret) (string, error) {
	for _, part := range []string{s.Name, s.Key} {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return "", fmt.Errorf("%q is not the name of a file", part)
		}
	}
	path := filepath.Join(dir, s.Name, s.Key)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("write it to %s, which does not exist", path)
	}
	if err != nil {
		return "", fmt.Errorf("read it: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPassword+3))
	if err != nil {
		return "", fmt.Errorf("read it: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("%s must hold 1 to %d octets", path, maxPassword)
	}
	return password, nil
}
