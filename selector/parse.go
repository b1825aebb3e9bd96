package selector

import (
	"fmt"
	"slices"
)

// maxDepth bounds the nesting of parentheses, and with it the recursion of
// every function here.
const maxDepth = 200

// Parse reads a selector; the empty or blank text selects everything. The
// error is a *SyntaxError.
func Parse(s string) (*Selector, error) {
	toks, err := scan(s)
	if err != nil {
		return nil, err
	}
	if toks[0].kind == tokEOF {
		return newSelector(all{}), nil
	}
	p := parser{in: s, toks: toks}
	e, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.peek().kind != tokEOF {
		return nil, p.fail(p.peek(), fmt.Sprint("unexpected content at end of selector ", clipTokens(p.toks)))
	}
	return newSelector(e), nil
}

// clipTokens keeps an error to one readable line.
func clipTokens(toks []token) []token {
	const limit = 8
	if len(toks) > limit {
		return toks[:limit]
	}
	return toks
}

// parser holds the tokens not yet read; the last is always tokEOF.
type parser struct {
	in   string
	toks []token
}

func (p *parser) peek() token { return p.toks[0] }

func (p *parser) take() token {
	t := p.toks[0]
	if t.kind != tokEOF {
		p.toks = p.toks[1:]
	}
	return t
}

func (p *parser) accept(k tokenKind) bool {
	if p.peek().kind != k {
		return false
	}
	p.take()
	return true
}

func (p *parser) fail(t token, msg string) error {
	return &SyntaxError{Input: p.in, Pos: t.pos, Msg: msg}
}

func (p *parser) or(depth int) (expr, error) {
	e, err := p.and(depth)
	if err != nil || p.peek().kind != tokOr {
		return e, err
	}
	list := or{e}
	for p.accept(tokOr) {
		e, err := p.and(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (p *parser) and(depth int) (expr, error) {
	e, err := p.operation(depth)
	if err != nil || p.peek().kind != tokAnd {
		return e, err
	}
	list := and{e}
	for p.accept(tokAnd) {
		e, err := p.operation(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (p *parser) operation(depth int) (expr, error) {
	negated := false
	for p.accept(tokNot) {
		negated = !negated
	}
	e, err := p.primary(depth)
	if err != nil || !negated {
		return e, err
	}
	if n, ok := e.(not); ok { // !(!x)
		return n.expr, nil
	}
	return not{e}, nil
}

func (p *parser) primary(depth int) (expr, error) {
	switch t := p.take(); t.kind {
	case tokAll:
		return all{}, nil
	case tokGlobal:
		return global{}, nil
	case tokHas:
		return has{t.text}, nil
	case tokLabel:
		return p.test(t.text)
	case tokLParen:
		if depth == maxDepth {
			return nil, p.fail(t, fmt.Sprintf("more than %d nested parentheses", maxDepth))
		}
		e, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		if !p.accept(tokRParen) {
			return nil, p.fail(p.peek(), "expected )")
		}
		return e, nil
	default:
		return nil, p.fail(t, "expected a label, has(, all(), global(), ! or ( not: "+t.String())
	}
}

// test parses what follows a label.
func (p *parser) test(label string) (expr, error) {
	t := p.take()
	switch t.kind {
	case tokEq:
		s, err := p.str()
		return equal{label, s}, err
	case tokNe:
		s, err := p.str()
		return notEqual{label, s}, err
	case tokContains:
		s, err := p.str()
		return contains{label, s}, err
	case tokStartsWith:
		s, err := p.str()
		return startsWith{label, s}, err
	case tokEndsWith:
		s, err := p.str()
		return endsWith{label, s}, err
	case tokIn:
		set, err := p.set()
		return in{label, set}, err
	case tokNotIn:
		set, err := p.set()
		return notIn{label, set}, err
	}
	return nil, p.fail(t, "expected == or != not: "+t.String())
}

func (p *parser) str() (string, error) {
	t := p.take()
	if t.kind != tokString {
		return "", p.fail(t, "expected string")
	}
	return t.text, nil
}

// set parses "{...}" into sorted distinct values.
func (p *parser) set() ([]string, error) {
	if !p.accept(tokLBrace) {
		return nil, p.fail(p.peek(), "expected set literal {...}")
	}
	var values []string
	for p.peek().kind == tokString {
		values = append(values, p.take().text)
		if !p.accept(tokComma) {
			break
		}
	}
	if !p.accept(tokRBrace) {
		return nil, p.fail(p.peek(), "expected }")
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}
