package selector

import (
	"fmt"
	"strings"
)

// maxLabel is the longest label that a selector can name.
const maxLabel = 512

type tokenKind uint8

const (
	tokEOF tokenKind = iota
	tokLabel
	tokString
	tokLBrace
	tokRBrace
	tokComma
	tokEq
	tokNe
	tokIn
	tokNotIn
	tokContains
	tokStartsWith
	tokEndsWith
	tokNot
	tokAll
	tokHas
	tokGlobal
	tokLParen
	tokRParen
	tokAnd
	tokOr
)

// names are Calico's, which its error texts show.
func (k tokenKind) String() string {
	return [...]string{
		"TokEOF", "TokLabel", "TokStringLiteral", "TokLBrace", "TokRBrace", "TokComma", "TokEq", "TokNe",
		"TokIn", "TokNotIn", "TokContains", "TokStartsWith", "TokEndsWith", "TokNot", "TokAll", "TokHas",
		"TokGlobal", "TokLParen", "TokRParen", "TokAnd", "TokOr",
	}[k]
}

type token struct {
	kind tokenKind
	text string // of a label, of a string without its quotes
	pos  int    // byte offset
}

func (t token) String() string { return t.kind.String() + "(" + t.text + ")" }

// SyntaxError is what is wrong with a selector and where.
type SyntaxError struct {
	Input string
	Pos   int // byte offset in Input, from 0; len(Input) at the end
	Msg   string
}

// Error is one line; a long selector is shortened.
func (e *SyntaxError) Error() string {
	s := e.Input
	if len(s) > 120 {
		s = s[:120] + "..."
	}
	return fmt.Sprintf("invalid selector %q at byte %d: %s", s, e.Pos, e.Msg)
}

// scanner cuts a selector into tokens.
type scanner struct {
	in   string
	pos  int
	last tokenKind
	toks []token
}

func scan(in string) ([]token, error) {
	s := scanner{in: in}
	for {
		for s.pos < len(in) && (in[s.pos] == ' ' || in[s.pos] == '\t') {
			s.pos++
		}
		if s.pos == len(in) {
			s.emit(tokEOF, "", 0)
			return s.toks, nil
		}
		if err := s.next(); err != nil {
			return nil, err
		}
	}
}

func (s *scanner) emit(k tokenKind, text string, width int) {
	s.toks = append(s.toks, token{k, text, s.pos})
	s.pos += width
	s.last = k
}

func (s *scanner) fail(pos int, format string, args ...string) error {
	msg := format
	for _, a := range args {
		msg = strings.Replace(msg, "%", a, 1)
	}
	return &SyntaxError{Input: s.in, Pos: pos, Msg: msg}
}

func (s *scanner) next() error {
	rest := s.in[s.pos:]
	switch c := rest[0]; c {
	case '(':
		s.emit(tokLParen, "", 1)
	case ')':
		s.emit(tokRParen, "", 1)
	case '{':
		s.emit(tokLBrace, "", 1)
	case '}':
		s.emit(tokRBrace, "", 1)
	case ',':
		s.emit(tokComma, "", 1)
	case '"', '\'':
		end := strings.IndexByte(rest[1:], c)
		if end < 0 {
			return s.fail(s.pos, "unterminated string")
		}
		s.emit(tokString, rest[1:1+end], end+2)
	case '=':
		return s.double("==", tokEq)
	case '&':
		return s.double("&&", tokAnd)
	case '|':
		return s.double("||", tokOr)
	case '!':
		if strings.HasPrefix(rest, "!=") {
			s.emit(tokNe, "", 2)
		} else {
			s.emit(tokNot, "", 1)
		}
	default:
		if s.last == tokLabel {
			return s.operator(rest)
		}
		return s.word(rest)
	}
	return nil
}

func (s *scanner) double(text string, k tokenKind) error {
	if !strings.HasPrefix(s.in[s.pos:], text) {
		return s.fail(s.pos, "expected %", text)
	}
	s.emit(k, "", 2)
	return nil
}

// operator scans what follows a label. Elsewhere the same words are labels.
func (s *scanner) operator(rest string) error {
	for _, op := range []struct {
		kind          tokenKind
		first, second string
	}{
		{tokIn, "in", ""},
		{tokNotIn, "not", "in"},
		{tokContains, "contains", ""},
		{tokStartsWith, "starts", "with"},
		{tokEndsWith, "ends", "with"},
	} {
		after, ok := strings.CutPrefix(rest, op.first)
		if !ok {
			continue
		}
		if op.second != "" {
			if after, ok = strings.CutPrefix(strings.TrimLeft(after, " \t"), op.second); !ok {
				continue
			}
		}
		if after != "" && isLabelByte(after[0]) {
			continue
		}
		s.emit(op.kind, "", len(rest)-len(after))
		return nil
	}
	label := s.toks[len(s.toks)-1].text
	return s.fail(s.pos, `expected operator after label "%"`, label)
}

// word scans a label or one of the functions, whose '(' follows immediately.
func (s *scanner) word(rest string) error {
	n := labelLength(rest)
	if n == 0 {
		return s.fail(s.pos, "unexpected character %", fmt.Sprintf("%q", []rune(rest)[0]))
	}
	if n > maxLabel {
		return s.fail(s.pos, "a label has at most 512 characters")
	}
	if n == len(rest) || rest[n] != '(' {
		s.emit(tokLabel, rest[:n], n)
		return nil
	}
	inside := strings.TrimLeft(rest[n+1:], " \t")
	switch rest[:n] {
	case "all":
		return s.closeFunction(tokAll, "all(", "", rest, inside)
	case "global":
		return s.closeFunction(tokGlobal, "global(", "", rest, inside)
	case "has":
		l := labelLength(inside)
		if l == 0 {
			return s.fail(s.pos+len(rest)-len(inside), "no label after has(")
		}
		if l > maxLabel {
			return s.fail(s.pos+len(rest)-len(inside), "a label has at most 512 characters")
		}
		return s.closeFunction(tokHas, "has(", inside[:l], rest, strings.TrimLeft(inside[l:], " \t"))
	}
	s.emit(tokLabel, rest[:n], n)
	return nil
}

func (s *scanner) closeFunction(k tokenKind, open, label, rest, inside string) error {
	if !strings.HasPrefix(inside, ")") {
		return s.fail(s.pos+len(rest)-len(inside), "no closing ')' after %", open)
	}
	s.emit(k, label, len(rest)-len(inside)+1)
	return nil
}

func labelLength(s string) int {
	n := 0
	for n < len(s) && isLabelByte(s[n]) {
		n++
	}
	return n
}

func isLabelByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '_' || c == '.' || c == '/' || c == '-'
}
