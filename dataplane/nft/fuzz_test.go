package nft

import (
	"net/netip"
	"testing"

	"github.com/manekinet/maneki/desired"
)

// sampleBatch is a batch with every kind of object: what the kernel lists has the
// same attributes.
func sampleBatch(f *testing.F) []byte {
	b := (&socket{}).batch()
	b.table()
	hosts := desired.HostSetType(true)
	set := desired.NFTKey{Kind: desired.NFTSet, Name: "hosts4"}
	b.newSet(set, hosts)
	b.elements(0, 0, set, hosts, []desired.Element{hosts.MemberElement(desired.Member{Net: netip.MustParsePrefix("10.0.0.1/32")})})
	fold := desired.NewSetType(true, desired.TypeIPv4, desired.TypeProto, desired.TypePort)
	fold.Verdicts, fold.Counters = true, true
	verdicts := desired.NFTKey{Kind: desired.NFTSet, Name: "fold4"}
	b.newSet(verdicts, fold)
	b.elements(0, 0, verdicts, fold, []desired.Element{fold.Element(desired.Verdict{Do: desired.Goto, Chain: "deny"},
		desired.AddrPart(netip.MustParsePrefix("10.0.0.0/8")), desired.ProtoPart(6), desired.PortPart(80, 90))})
	chain := desired.NFTKey{Kind: desired.NFTChain, Name: "input"}
	if err := b.newChain(chain, desired.Hook{Type: "filter", Name: "input", Priority: -9}); err != nil {
		f.Fatal(err)
	}
	rule := desired.Rule{Match: []desired.Match{desired.SrcIn("hosts4", true), desired.Proto(6)}, Counter: true, Do: desired.Drop}
	if err := b.newRule(chain, rule); err != nil {
		f.Fatal(err)
	}
	return b.buf
}

// FuzzListing reads anything as what the kernel answers to a listing, as every
// kind of object. Nothing panics and nothing is read past its end; what is not
// ours never has the identity of a rule or the type of a set that we wish for.
func FuzzListing(f *testing.F) {
	sample := sampleBatch(f)
	f.Add(sample)
	for _, m := range split(sample) {
		f.Add(append(make([]byte, sizeHeader), m.data...))
		f.Add(m.data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range split(b) {
			_ = m.errno()
			if len(m.data) >= sizeFamily {
				readAsEverything(t, m.data[sizeFamily:])
			}
		}
		readAsEverything(t, b)
	})
}

func readAsEverything(t *testing.T, a attributes) {
	typ := setType(a)
	_ = typ.String()
	for dormant := range 2 {
		if h := readHook(a, dormant == 1); dormant == 1 && h != (desired.Hook{}) && h.Type != foreign {
			t.Fatalf("a chain of a table that is switched off is read as %+v", h)
		}
	}
	_, _ = ruleID(a), ruleCounter(a)
	var list []element
	a.each(func(_ uint16, data []byte) {
		e := readElement(data)
		list = append(list, e)
		if typ.Key[0] != 0 {
			_ = typ.Text(e.Element)
			_, _ = typ.Member(e.Element)
		}
	})
	_, _ = ranges(list)
}
