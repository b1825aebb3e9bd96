package resource

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/datastore"
)

func TestEnsureInitialized(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	info, err := c.EnsureInitialized(ctx, "", "")
	must(t, err)
	guid := info.Spec.ClusterGUID
	if !regexp.MustCompile("^[0-9a-f]{32}$").MatchString(guid) {
		t.Errorf("GUID %q", guid)
	}
	e, err := s.Get(ctx, datastore.Key{Kind: "ClusterInformation", Name: "default"})
	must(t, err)
	want := fmt.Sprintf(`{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"%s","creationTimestamp":"%s"},"spec":{"clusterGUID":"%s","datastoreReady":true}}`,
		info.UID, info.CreationTimestamp.Format("2006-01-02T15:04:05Z"), guid)
	if string(e.Value) != want {
		t.Errorf("stored\n %s, want\n %s", e.Value, want)
	}

	for _, step := range []struct{ version, add, wantVersion, wantType string }{
		{"v0.1.0", "bgp", "v0.1.0", "bgp"},
		{"", "", "v0.1.0", "bgp"},
		{"v0.2.0", "k8s,bgp", "v0.2.0", "bgp,k8s"},
		{"", " vxlan ,,k8s", "v0.2.0", "bgp,k8s,vxlan"},
	} {
		info, err = c.EnsureInitialized(ctx, step.version, step.add)
		must(t, err)
		if got := info.Spec; got.ClusterGUID != guid || got.CalicoVersion != step.wantVersion || got.ClusterType != step.wantType {
			t.Errorf("after %+v: %+v", step, got)
		}
	}

	// A lock for a migration stays, and a call that changes nothing writes nothing.
	locked := false
	info.Spec.DatastoreReady = &locked
	must(t, c.Replace(ctx, info))
	before := info.ResourceVersion
	info, err = c.EnsureInitialized(ctx, "v0.2.0", "bgp")
	must(t, err)
	if *info.Spec.DatastoreReady || info.ResourceVersion != before {
		t.Errorf("ready %v, resourceVersion %s after %s", *info.Spec.DatastoreReady, info.ResourceVersion, before)
	}
}

// Hosts that start at the same moment agree on one GUID.
func TestEnsureInitializedConcurrently(t *testing.T) {
	c, _ := newClient(t)
	var wg sync.WaitGroup
	guids, errs := make([]string, 16), make([]error, 16)
	for i := range guids {
		wg.Go(func() {
			info, err := c.EnsureInitialized(t.Context(), "v1", fmt.Sprintf("t%d", i))
			if errs[i] = err; err == nil {
				guids[i] = info.Spec.ClusterGUID
			}
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	if slices.Sort(guids); guids[0] != guids[15] {
		t.Errorf("GUIDs %v", guids)
	}
}

func TestDefaultAllowProfile(t *testing.T) {
	c, s := newClient(t)
	ctx := t.Context()
	k := kind(t, "Profile")
	for _, name := range []string{"kns.default", "zzz"} {
		p := &api.Profile{}
		p.Name = name
		must(t, c.Create(ctx, p))
	}
	list, problems, err := c.List(ctx, k, "")
	must(t, errors.Join(append(problems, err)...))
	var got []string
	for _, o := range list {
		got = append(got, o.Meta().Name)
	}
	if want := []string{"kns.default", "projectcalico-default-allow", "zzz"}; !slices.Equal(got, want) {
		t.Errorf("profiles %v, want %v", got, want)
	}
	o, err := c.Get(ctx, k, "", api.DefaultAllowProfile)
	must(t, err)
	p := o.(*api.Profile)
	if p.ResourceVersion != "1" || len(p.Spec.Ingress) != 1 || p.Spec.Ingress[0].Action != api.ActionAllow || len(p.Spec.Egress) != 1 {
		t.Errorf("profile %+v", p)
	}
	mine := &api.Profile{}
	mine.Name = api.DefaultAllowProfile
	wantText(t, c.Create(ctx, mine), "resource already exists: Profile(projectcalico-default-allow) with error: <nil>")
	err = c.Apply(ctx, mine)
	wantText(t, err, "operation Update is not supported on projectcalico-default-allow: the profile is built in")
	if !errors.Is(err, ErrUnsupported) {
		t.Error("not ErrUnsupported")
	}
	wantText(t, c.Delete(ctx, mine), "operation Delete is not supported on projectcalico-default-allow: the profile is built in")
	if stored := names(t, s, "Profile"); len(stored) != 2 {
		t.Errorf("stored %v", stored)
	}
}
