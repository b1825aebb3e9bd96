package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/manekinet/maneki/desired"
)

// Counter is what a rule or an element has matched.
type Counter struct{ Packets, Bytes uint64 }

// Counters are the counters of the table. They begin at zero when a chain is written anew.
type Counters struct {
	Rules    map[string][]Counter                   // by chain, in the order of its rules; zero for one that does not count
	Elements map[string]map[desired.Element]Counter // by set
}

// ReadCounters reads the counters of all rules, and of the elements of the sets named with their types. It has a socket
// of its own, in the namespace of the calling thread, and waits for nobody.
func ReadCounters(sets map[string]desired.SetType) (Counters, error) {
	s, err := open()
	if err != nil {
		return Counters{}, err
	}
	defer func() { _ = s.close() }()
	out := Counters{Rules: map[string][]Counter{}, Elements: map[string]map[desired.Element]Counter{}}
	attrs := appendText(nil, unix.NFTA_RULE_TABLE, desired.NFTTable)
	err = s.dump(unix.NFT_MSG_GETRULE, attrs, func() { clear(out.Rules) }, func(a attributes) {
		chain := a.text(unix.NFTA_RULE_CHAIN)
		out.Rules[chain] = append(out.Rules[chain], ruleCounter(a.get(unix.NFTA_RULE_EXPRESSIONS)))
	})
	if err != nil && !errors.Is(err, errGone) {
		return Counters{}, fmt.Errorf("list rules: %w", err)
	}
	for name, t := range sets {
		list, ok, err := s.listElements(name, t)
		if errors.Is(err, errGone) || !ok && err == nil {
			continue
		}
		if err != nil {
			return Counters{}, fmt.Errorf("list elements of %s: %w", name, err)
		}
		out.Elements[name] = make(map[desired.Element]Counter, len(list))
		for _, e := range list {
			out.Elements[name][e.Element] = e.counter
		}
	}
	return out, nil
}

func ruleCounter(exprs attributes) (c Counter) {
	exprs.each(func(_ uint16, e []byte) {
		if attributes(e).text(unix.NFTA_EXPR_NAME) == "counter" {
			c = readCounter(attributes(e).get(unix.NFTA_EXPR_DATA))
		}
	})
	return c
}
