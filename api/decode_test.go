package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func split(t *testing.T, in string) []string {
	t.Helper()
	docs, err := SplitDocuments(strings.NewReader(in))
	if err != nil {
		t.Fatalf("SplitDocuments(%q): %v", in, err)
	}
	var out []string
	for _, d := range docs {
		out = append(out, string(d))
	}
	return out
}

func TestSplitDocuments(t *testing.T) {
	const list = `{"kind":"IPPool","metadata":{"name":"p2"},"apiVersion":"projectcalico.org/v3"}`
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"blank", " \n\t\n", nil},
		{"comments", "# a\n---\n# b\n---\n", nil},
		{"one", "kind: A", []string{`{"kind":"A"}`}},
		{"two", "kind: A\n---\nkind: B\n", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"empty between", "---\nkind: A\n---\n---   # nothing\n\n---\nkind: B", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"content on the marker", "--- {kind: A}\n--- {kind: B}", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"end markers", "kind: A\n...\n---\nkind: B\n...\n", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"directive", "%YAML 1.1\n---\nkind: A\n", []string{`{"kind":"A"}`}},
		{"carriage returns", "kind: A\r\n---\r\nkind: B\r\n", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"byte order mark", "\xef\xbb\xbfkind: A", []string{`{"kind":"A"}`}},
		{"dashes in a text", "kind: A\nnote: |\n  ---\n  x\n", []string{`{"kind":"A","note":"---\nx\n"}`}},
		{"dashes that are no marker", "kind: A\n---x: 1\n", []string{`{"kind":"A","---x":1}`}},
		{"json", `{"kind":"A"}`, []string{`{"kind":"A"}`}},
		{"json stream", "{\"kind\":\"A\"}\n{\"kind\":\"B\"} {\"kind\":\"C\"}", []string{`{"kind":"A"}`, `{"kind":"B"}`, `{"kind":"C"}`}},
		{"json array", `[{"kind":"A"},{"kind":"B"}]`, []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"flow style", "{kind: A, n: 0x10, f: 1e3, t: 2026-11-21, u: ~, b: True}", []string{`{"kind":"A","n":16,"f":1000,"t":"2026-11-21","u":null,"b":true}`}},
		{"order and numbers kept", `{"z":1,"kind":"A","a":12345678901234567890,"f":1.50}`, []string{`{"z":1,"kind":"A","a":12345678901234567890,"f":1.50}`}},
		{"surrogates", `{"kind":"A","n":"\ud83d\ude00"}`, []string{`{"kind":"A","n":"😀"}`}},
		{"yaml array", "- kind: A\n- kind: B\n", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"List", "kind: List\napiVersion: v1\nitems:\n- kind: A\n- kind: List\n  items: [{kind: B}]\n", []string{`{"kind":"A"}`, `{"kind":"B"}`}},
		{"typed list", "kind: IPPoolList\napiVersion: projectcalico.org/v3\nitems:\n- kind: IPPool\n  metadata: {name: p2}\n- metadata: {name: p3}\n", []string{list, `{"metadata":{"name":"p3"},"kind":"IPPool","apiVersion":"projectcalico.org/v3"}`}},
		{"empty list", "kind: IPPoolList\napiVersion: projectcalico.org/v3\nitems: []\n", nil},
		{"alias", "kind: A\na: &x {b: c}\nd: *x\n", []string{`{"kind":"A","a":{"b":"c"},"d":{"b":"c"}}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := split(t, tt.in); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What a split document says is read the same way again.
func TestSplitThenDecode(t *testing.T) {
	docs := split(t, `apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
- metadata: {name: p2, creationTimestamp: null}
  spec: {cidr: 10.66.0.0/16, blockSize: 24}
- metadata: {name: p3, creationTimestamp: 2026-11-21T00:00:00Z}
  spec: {cidr: "fd00::/64"}
`)
	for i, name := range []string{"p2", "p3"} {
		o, err := DecodeStrict([]byte(docs[i]))
		if err != nil {
			t.Fatal(err)
		}
		if o.Meta().Name != name || (o.Meta().CreationTimestamp != nil) != (name == "p3") {
			t.Errorf("read %+v", o.Meta())
		}
	}
}

// Inputs that would grow without bound are refused while they are small.
func TestBombs(t *testing.T) {
	var billion strings.Builder
	billion.WriteString("kind: A\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := range 12 {
		fmt.Fprintf(&billion, "a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	text := "kind: A\nt: &t " + strings.Repeat("x", 1<<20) + "\nl: [" + strings.Repeat("*t, ", 100_000) + "]\n"
	for _, tt := range []struct{ name, in, want string }{
		{"aliases of lists", billion.String(), "document is larger than 64 MiB in memory"},
		{"aliases of a long text", text, "document is larger than 64 MiB in memory"},
		{"too many bytes", strings.Repeat("# comment\n", MaxInput/10+1), "input is larger than 8 MiB; split it"},
		{"too many values", "kind: A\nl: [" + strings.Repeat("1,", maxYAMLTokens) + "]", "the document at line 1 has more than 500000 values; split it or write JSON"},
		{"nested flow", "kind: A\nl: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "nested deeper than 64 levels"},
		{"nested json", `{"kind":` + strings.Repeat("[", 100_000), "nested deeper than 64 levels"},
		{"nested lists", strings.Repeat("[", 6) + strings.Repeat("]", 6), "lists of resources are nested deeper than 4 levels"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := SplitDocuments(strings.NewReader(tt.in))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Errorf("not one short line: %v", err)
			}
			if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 200 {
				t.Errorf("allocated %d MiB to find out", used)
			}
		})
	}
}

// A large label is no bomb: it is read, and refused by its length.
func TestLargeLabel(t *testing.T) {
	in := "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: n, labels: {a: " + strings.Repeat("x", 7<<20) + "}}\n"
	err := read([]byte(in))
	if err == nil || !strings.Contains(err.Error(), "Node.Metadata.Labels[a]") || len(err.Error()) > 400 {
		t.Errorf("error %.500v", err)
	}
}

const storedPool = `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","managedFields":[1]},"spec":{"cidr":"10.0.0.0/16","future":{"a":[1,2.50]},"blockSize":26,"allowedUses":["Workload"]},"status":{"conditions":[{"type":"Allocatable","status":"True","lastTransitionTime":null,"reason":"r","message":"m","extra":1},{"type":"B","status":"True","lastTransitionTime":null,"reason":"r","message":"m"}],"more":true}}`

func poolKind(t *testing.T) Kind {
	t.Helper()
	k, err := LookupKind("IPPool")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestDecodeReportsUnknown(t *testing.T) {
	o, unknown, err := Decode(poolKind(t), []byte(storedPool))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"metadata.managedFields", "spec.future", "status.conditions[0].extra", "status.more"}
	if !slices.Equal(unknown, want) {
		t.Errorf("unknown %q, want %q", unknown, want)
	}
	if p := o.(*IPPool); p.Spec.CIDR != "10.0.0.0/16" || !p.Allocatable() {
		t.Errorf("read %+v", p.Spec)
	}
}

func TestMergeUnknown(t *testing.T) {
	k := poolKind(t)
	o, _, err := Decode(k, []byte(storedPool))
	if err != nil {
		t.Fatal(err)
	}
	p := o.(*IPPool)
	p.Spec.Disabled = true
	slices.Reverse(p.Status.Conditions)
	encoded, err := Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := MergeUnknown([]byte(storedPool), encoded, k)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","managedFields":[1]},"spec":{"cidr":"10.0.0.0/16","disabled":true,"blockSize":26,"allowedUses":["Workload"],"future":{"a":[1,2.50]}},"status":{"conditions":[{"type":"B","status":"True","lastTransitionTime":null,"reason":"r","message":"m"},{"type":"Allocatable","status":"True","lastTransitionTime":null,"reason":"r","message":"m","extra":1}],"more":true}}`
	if string(got) != want {
		t.Errorf("merged\n got %s\nwant %s", got, want)
	}

	// What the object no longer has takes its unknown fields along.
	p.Status = nil
	encoded, err = Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err = MergeUnknown([]byte(storedPool), encoded, k)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(got, []byte("more")) || !bytes.Contains(got, []byte("future")) {
		t.Errorf("merged %s", got)
	}

	// Without unknown fields nothing is rewritten.
	plain := []byte(`{"spec":{"cidr":"10.0.0.0/16"}}`)
	if got, err = MergeUnknown(plain, encoded, k); err != nil || &got[0] != &encoded[0] {
		t.Errorf("merge with nothing unknown: %s, %v", got, err)
	}
	if _, err = MergeUnknown([]byte("{"), encoded, k); err == nil {
		t.Error("a torn stored value was merged")
	}
}

// Unknown fields anywhere in an object survive a read-modify-write, and the
// known ones are what was written.
func TestMergeKeepsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := rapid.SampledFrom(goldens()).Draw(t, "object")
		n, err := parseJSON([]byte(g.stored))
		if err != nil {
			t.Fatal(err)
		}
		sprinkle(t, n)
		old := n.json()
		k, err := LookupKind(n.get("kind").textOf())
		if err != nil {
			t.Fatal(err)
		}
		_, before, err := Decode(k, old)
		if err != nil {
			t.Fatal(err)
		}
		o, err := DecodeStrict([]byte(g.stored))
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		merged, err := MergeUnknown(old, encoded, k)
		if err != nil {
			t.Fatal(err)
		}
		back, after, err := Decode(k, merged)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(before)
		slices.Sort(after)
		if !slices.Equal(before, after) {
			t.Fatalf("unknown fields were %q, are %q", before, after)
		}
		again, err := Encode(back)
		if err != nil || !bytes.Equal(again, encoded) {
			t.Fatalf("known fields changed: %s, %v", again, err)
		}
	})
}

// sprinkle adds unknown fields to objects. Free maps (labels) know every key.
func sprinkle(t *rapid.T, n *tree) {
	for i, v := range n.values {
		if n.kind == jsonObject && slices.Contains([]string{"labels", "annotations", "labelsToApply", "matchLabels"}, n.keys[i]) {
			continue
		}
		sprinkle(t, v)
	}
	if n.kind == jsonObject && rapid.Bool().Draw(t, "add") {
		n.set("xUnknown", &tree{kind: jsonList, values: []*tree{{kind: jsonNumber, text: "1.0"}, {kind: jsonNull}}})
	}
}

// Absent and empty lists are different in every way an object can travel.
func TestEmptyIsNotAbsent(t *testing.T) {
	for _, rule := range []string{
		`{"action":"Deny"}`, `{"action":"Deny","source":{"nets":[]}}`, `{"action":"Deny","source":{"notNets":[]}}`,
		`{"action":"Deny","protocol":"TCP","destination":{"ports":[]}}`, `{"action":"Deny","destination":{"serviceAccounts":{"names":[]}}}`,
	} {
		in := `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"x"},"spec":{"ingress":[` + rule + `]}}`
		for _, doc := range split(t, in) {
			o, err := DecodeStrict([]byte(doc))
			if err != nil {
				t.Fatal(err)
			}
			o.Default()
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			out, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			if string(out) != in {
				t.Errorf("stored %s, want %s", out, in)
			}
		}
	}
	var p Profile
	if err := json.Unmarshal([]byte(`{"spec":{"egress":[]}}`), &p); err != nil {
		t.Fatal(err)
	}
	if p.Spec.Egress == nil || p.Spec.Ingress != nil {
		t.Errorf("egress %v, ingress %v", p.Spec.Egress == nil, p.Spec.Ingress == nil)
	}
}

func FuzzDecode(f *testing.F) {
	for _, g := range goldens() {
		f.Add([]byte(g.typed))
	}
	f.Add([]byte("kind: List\nitems: [{kind: Node}]\n---\na: &x [*x]\n"))
	f.Add([]byte("apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.0.0.0/16, blockSize: 0x1a}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		docs, err := SplitDocuments(bytes.NewReader(in))
		if err != nil {
			return
		}
		for _, d := range docs {
			if !json.Valid(d) {
				t.Fatalf("document %q is not JSON", d)
			}
			o, err := DecodeStrict(d)
			if err != nil {
				continue
			}
			o.Default()
			if o.Validate() != nil {
				continue
			}
			stored, err := Encode(o)
			if err != nil {
				t.Fatal(err)
			}
			back, err := DecodeStrict(stored)
			if err != nil {
				t.Fatalf("stored %s is refused: %v", stored, err)
			}
			back.Default()
			if again, err := Encode(back); err != nil || !bytes.Equal(again, stored) {
				t.Fatalf("stored %s, then %s, %v", stored, again, err)
			}
			if err := back.Validate(); err != nil {
				t.Fatalf("stored %s is invalid: %v", stored, err)
			}
		}
	})
}
