package api

import (
	"strings"
	"testing"
)

const poolYAML = `# two documents
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: p1}
spec:
  cidr: 10.65.0.0/16
  natOutgoing: true
---
apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
- metadata: {name: p2}
  spec: {cidr: 10.66.0.0/16, blockSize: 24}
- metadata: {name: p3}
  spec: {cidr: "fd00::/64"}
`

func TestSplitDocuments(t *testing.T) {
	docs, err := SplitDocuments(strings.NewReader(poolYAML))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p1"},"spec":{"cidr":"10.65.0.0/16","natOutgoing":true}}`,
		`{"metadata":{"name":"p2"},"spec":{"cidr":"10.66.0.0/16","blockSize":24},"kind":"IPPool","apiVersion":"projectcalico.org/v3"}`,
		`{"metadata":{"name":"p3"},"spec":{"cidr":"fd00::/64"},"kind":"IPPool","apiVersion":"projectcalico.org/v3"}`,
	}
	if len(docs) != len(want) {
		t.Fatalf("%d documents, want %d: %s", len(docs), len(want), docs)
	}
	for i := range want {
		if string(docs[i]) != want[i] {
			t.Errorf("document %d:\n got %s\nwant %s", i, docs[i], want[i])
		}
		o, err := DecodeStrict(docs[i])
		if err != nil {
			t.Fatal(err)
		}
		o.Default()
		if err := o.Validate(); err != nil {
			t.Errorf("document %d: %v", i, err)
		}
	}
}
