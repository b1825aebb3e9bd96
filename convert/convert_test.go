package convert

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/manekinet/maneki/api"
)

var update = flag.Bool("update", false, "rewrite what is expected in testdata")

// pairs calls f for every input of a corpus with what stands beside it, and
// rewrites that with -update.
func pairs(t *testing.T, file, suffix string, f func(name string, in []byte) string) {
	t.Helper()
	corpus, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(corpus.Files); i += 2 {
		in, want := corpus.Files[i], &corpus.Files[i+1]
		if want.Name != in.Name+suffix {
			t.Fatalf("%s is followed by %s", in.Name, want.Name)
		}
		got := f(in.Name, in.Data)
		if *update {
			want.Data = []byte(got)
		}
		if got != string(want.Data) {
			t.Errorf("%s\n got %swant %s", in.Name, got, want.Data)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(corpus), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func encode(t testing.TB, objects []api.Object) string {
	t.Helper()
	var b strings.Builder
	for _, o := range objects {
		text, err := api.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}

// Every kind of manifest becomes exactly these resources.
func TestManifest(t *testing.T) {
	pairs(t, "testdata/good.txtar", ".v3", func(name string, in []byte) string {
		if !IsKubernetes(in) {
			t.Errorf("%s: not recognised", name)
		}
		objects, err := Manifest(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return encode(t, objects)
	})
}

// Every bad manifest is refused with exactly this error.
func TestBadManifest(t *testing.T) {
	pairs(t, "testdata/bad.txtar", ".error", func(name string, in []byte) string {
		objects, err := Manifest(in)
		if err == nil {
			t.Errorf("%s is accepted: %s", name, encode(t, objects))
			return ""
		}
		var fields *api.FieldErrors
		one := !errors.As(err, &fields) || len(fields.List) == 1
		if one && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has several lines", name)
		}
		return err.Error() + "\n"
	})
}

func TestIsKubernetes(t *testing.T) {
	for doc, want := range map[string]bool{
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy":                     true,
		"apiVersion: projectcalico.org/v3\nkind: NetworkPolicy":                     false,
		"apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy":                 false,
		"apiVersion: v1\nkind: Namespace":                                           true,
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace}]":    true,
		"apiVersion: v1\nkind: Pod":                                                 true,
		"apiVersion: apps/v1\nkind: Deployment":                                     true,
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy":   true,
		"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy": true,
		"apiVersion: v1\nkind: IPPool":                                              false,
		"apiVersion: example.com/v1\nkind: Thing":                                   false,
		"kind: NetworkPolicy":                                                       false,
		"":                                                                          false,
		"{":                                                                         false,
	} {
		if got := IsKubernetes([]byte(doc)); got != want {
			t.Errorf("%q: %v", doc, got)
		}
	}
}

// What a manifest leaves open is the caller's to say.
func TestOptions(t *testing.T) {
	opts := Options{Namespace: "prod", AnyOrchestrator: true}
	got, err := opts.Manifest([]byte(`{"apiVersion":"v1","kind":"List","items":[
{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p"},"spec":{"podSelector":{"matchLabels":{"a":"b"}},"ingress":[{"from":[{"podSelector":{}}]}]}},
{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p","namespace":"mine"},"spec":{"podSelector":{}}},
{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"s"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"knp.default.p","namespace":"prod","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":1000,"ingress":[{"action":"Allow","source":{"selector":"has(projectcalico.org/orchestrator)"}}],"selector":"has(projectcalico.org/orchestrator) \u0026\u0026 a == 'b'","types":["Ingress"]}}
{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"knp.default.p","namespace":"mine","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":1000,"selector":"has(projectcalico.org/orchestrator)","types":["Ingress"]}}
{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"ksa.prod.s"},"spec":{"labelsToApply":{"pcsa.projectcalico.org/name":"s"}}}
`
	if text := encode(t, got); text != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}

// The UID of a converted object is an involution of the manifest's (spec/calico.md §2.2).
func TestUID(t *testing.T) {
	m := metadata{UID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
	once := m.uid()
	if want := "d6e51d08-b9b5-118b-802d-0003f22b0c13"; once != want {
		t.Errorf("%s, want %s", once, want)
	}
	if twice := (&metadata{UID: once}).uid(); twice != m.UID {
		t.Errorf("%s, want %s", twice, m.UID)
	}
	if got := (&metadata{UID: "x"}).uid(); got != "" {
		t.Errorf("%q for no UID", got)
	}
}

// Whatever comes in, there is an error or valid resources that can be stored
// and read again, and no panic.
func FuzzManifest(f *testing.F) {
	for _, file := range []string{"testdata/good.txtar", "testdata/bad.txtar"} {
		corpus, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i := 0; i < len(corpus.Files); i += 2 {
			f.Add(corpus.Files[i].Data)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		IsKubernetes(in)
		objects, err := Options{Namespace: "default"}.Manifest(in)
		if err != nil {
			return
		}
		for _, o := range objects {
			if err := o.Validate(); err != nil {
				t.Fatalf("not valid: %v", err)
			}
			text, err := api.Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := api.DecodeStrict(text); err != nil || !json.Valid(text) || back.Type().Kind != o.Type().Kind {
				t.Fatalf("cannot be read again: %v\n%s", err, text)
			}
		}
	})
}
