// Package selector parses and evaluates Calico's label selectors, such as
//
//	app == 'web' && has(tier) && role in {'a', 'b'}
//
// The grammar, the meaning of an absent label, the canonical text and the
// unique ID are those of spec/calico.md §5.3, so that an ID computed here is
// the ID that Calico computes. Pure: no I/O, no state; a Selector never
// changes and may be used by any number of goroutines. One difference: !(!x)
// becomes x, as !!x does everywhere, so that the canonical text is a fixed point.
//
//	selector = "" | or                           (empty or blank is all())
//	or       = and { "||" and }
//	and      = op { "&&" op }
//	op       = { "!" } ( "has(" LABEL ")" | "all()" | "global()" | LABEL test | "(" or ")" )
//	test     = "==" STRING | "!=" STRING | ("in" | "not in") "{" [STRING {"," STRING} [","]] "}"
//	         | "contains" STRING | "starts with" STRING | "ends with" STRING
//	LABEL    = [A-Za-z0-9_./-]{1,512}
//	STRING   = "..." or '...', without escapes
//
// White space is space and tab. "==", "in", "contains", "starts with" and
// "ends with" are false when the label is absent; "!=" and "not in" are true.
package selector
