package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span whose JSON is Go's duration text in its normal form:
// "90s" is read and "1m30s" is written (spec/calico.md §1.4).
type Duration time.Duration

// Std is the same span as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is Go's text, for example "1m30s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the normal form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads Go's duration text.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is text such as \"90s\" or \"1m30s\"")
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("a duration is text such as \"90s\" or \"1m30s\"")
	}
	*d = Duration(v)
	return nil
}

// IntOrString is a JSON value that is either a number or a text and stays what
// it was when written again: the ports 80, "8080:8090" and "http", the
// protocols 17 and "UDP".
type IntOrString struct {
	Text  string // the text; empty when the value is a number
	Int   int    // the number, when IsInt
	IsInt bool
}

// FromInt is the number n.
func FromInt(n int) IntOrString { return IntOrString{Int: n, IsInt: true} }

// FromText is the text s.
func FromText(s string) IntOrString { return IntOrString{Text: s} }

// String is the number in decimal or the text itself.
func (v IntOrString) String() string {
	if v.IsInt {
		return strconv.Itoa(v.Int)
	}
	return v.Text
}

// MarshalJSON writes a number as a number and a text as a text.
func (v IntOrString) MarshalJSON() ([]byte, error) {
	if v.IsInt {
		return strconv.AppendInt(nil, int64(v.Int), 10), nil
	}
	return json.Marshal(v.Text)
}

// UnmarshalJSON reads either form.
func (v *IntOrString) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*v = IntOrString{}
		return json.Unmarshal(b, &v.Text)
	}
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return fmt.Errorf("a whole number or a text is wanted")
	}
	*v = FromInt(n)
	return nil
}

// ASNumber is a 4-byte BGP AS number (RFC 6793). It is written as a number and
// read as a number, as decimal text, or in the dotted form "high.low" of RFC 5396.
type ASNumber uint32

// ParseASNumber reads decimal or dotted text.
func ParseASNumber(s string) (ASNumber, error) {
	hi, lo, dotted := strings.Cut(s, ".")
	if !dotted {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("an AS number is 0-4294967295 or two numbers 0-65535 joined by a dot")
		}
		return ASNumber(n), nil
	}
	h, errHi := strconv.ParseUint(hi, 10, 16)
	l, errLo := strconv.ParseUint(lo, 10, 16)
	if errHi != nil || errLo != nil {
		return 0, fmt.Errorf("an AS number is 0-4294967295 or two numbers 0-65535 joined by a dot")
	}
	return ASNumber(h<<16 | l), nil
}

// String is the plain decimal form.
func (a ASNumber) String() string { return strconv.FormatUint(uint64(a), 10) }

// UnmarshalJSON reads a number or the two text forms. The dotted form must be
// text: as a number 1.10 would be 1.1, another AS.
func (a *ASNumber) UnmarshalJSON(b []byte) error {
	quoted := len(b) > 1 && b[0] == '"'
	if !quoted && bytes.IndexByte(b, '.') >= 0 {
		return fmt.Errorf("an AS number with a dot stands in quotes")
	}
	v, err := ParseASNumber(string(bytes.Trim(b, `"`)))
	if err != nil {
		return err
	}
	*a = v
	return nil
}
