package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manekinet/maneki/bgp"
	"github.com/manekinet/maneki/calc"
)

func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	write := func(name, key, text string) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, key), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tor", "md5", "tanuki\n")
	write("tor", "long", strings.Repeat("x", 81))
	write("tor", "full", strings.Repeat("x", 80)+"\r\n")
	write("tor", "empty", "\n")
	a := netip.MustParseAddr
	cfg := bgp.Config{Peers: map[netip.Addr]bgp.Peer{}}
	secrets := map[netip.Addr]calc.Secret{}
	for addr, key := range map[string]string{
		"10.0.0.1": "tor/md5", "10.0.0.2": "tor/long", "10.0.0.3": "tor/empty", "10.0.0.4": "tor/none",
		"10.0.0.5": "../tor", "10.0.0.6": "", "10.0.0.7": "tor/full",
	} {
		cfg.Peers[a(addr)] = bgp.Peer{Addr: a(addr)}
		if name, k, ok := strings.Cut(key, "/"); ok {
			secrets[a(addr)] = calc.Secret{Name: name, Key: k, Of: "BGPPeer(p)"}
		}
	}
	secrets[a("10.0.0.9")] = calc.Secret{Name: "tor", Key: "md5"}
	got, missing := withPasswords(dir, cfg, secrets)
	if got.Peers[a("10.0.0.1")].Password != "tanuki" || len(got.Peers[a("10.0.0.7")].Password) != 80 {
		t.Errorf("peers %+v", got.Peers)
	}
	if p, ok := got.Peers[a("10.0.0.6")]; !ok || p.Password != "" {
		t.Error("a peer without a secret is gone")
	}
	if len(got.Peers) != 3 || len(missing) != 4 {
		t.Errorf("%d peers and these reasons, want 3 and 4:\n%s", len(got.Peers), strings.Join(missing, "\n"))
	}
	for _, m := range missing {
		if strings.Contains(m, "tanuki") || strings.Contains(m, "xxx") || !strings.Contains(m, "no session is made") {
			t.Errorf("reason %q", m)
		}
	}
	if cfg.Peers[a("10.0.0.1")].Password != "" {
		t.Error("the password got into the state that is reported")
	}
	// What is changed on the disk is used with the next round.
	write("tor", "md5", "kitsune")
	if got, _ := withPasswords(dir, cfg, secrets); got.Peers[a("10.0.0.1")].Password != "kitsune" {
		t.Error("a changed password is not used")
	}
}
