package agent

import (
	"errors"
	"testing"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/desired"
	"github.com/manekinet/maneki/reconcile"
)

func TestPolicyApplied(t *testing.T) {
	failed := map[desired.NFTKey]error{{Name: "x"}: errors.New("no")}
	for _, tt := range []struct {
		name string
		s    reconcile.Status[desired.NFTKey]
		want agentapi.PolicyCount
	}{
		{"not begun", reconcile.Status[desired.NFTKey]{}, agentapi.PolicyCount{}},
		{"all there", reconcile.Status[desired.NFTKey]{Started: true, Wanted: 5, Present: 5, LastError: errors.New("of long ago")}, agentapi.PolicyCount{Applied: true}},
		{"under way", reconcile.Status[desired.NFTKey]{Started: true, Wanted: 5, Present: 3, Extra: 1}, agentapi.PolicyCount{Pending: 3}},
		{"refused", reconcile.Status[desired.NFTKey]{Started: true, Wanted: 5, Present: 4, Failed: failed, LastError: errors.New("no")}, agentapi.PolicyCount{Pending: 1, Error: "no"}},
	} {
		if got := policyApplied(agentapi.PolicyCount{}, tt.s); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
