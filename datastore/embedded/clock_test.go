package embedded

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A host whose clock is wrong is told by how much, before it becomes a member.
func TestClocks(t *testing.T) {
	now := time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		ours time.Duration
		says string // empty: near enough
	}{
		{0, ""},
		{29 * time.Second, ""},
		{-29 * time.Second, ""},
		{time.Minute, "this host's clock is 1m0s ahead of that of the cluster at u (allowed: 30s)"},
		{-2 * time.Hour, "this host's clock is 2h0m0s behind that of the cluster at u (allowed: 30s)"},
	} {
		err := compareClocks(now.Add(c.ours), now, "u")
		if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, ErrMembership) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.ours, err)
		}
	}
}

func TestClockOfACluster(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
	}))
	defer server.Close()
	err := checkClock(t.Context(), []string{"http://127.0.0.1:1", server.URL}, nil)
	if err == nil || !strings.Contains(err.Error(), "ahead of that of the cluster at "+server.URL) {
		t.Errorf("error is %v", err)
	}
}
