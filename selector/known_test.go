package selector

import "testing"

// IDs that Calico itself computes for these texts.
func TestKnownIDs(t *testing.T) {
	for _, tt := range []struct{ in, text, id string }{
		{"", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"},
		{" (all( ) )", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"},
		{"!(has(b)||!has( a))", "!(has(b) || !has(a))", "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q"},
		{"! (a=='b' && !c != 'd')", `!(a == "b" && !c != "d")`, "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w"},
	} {
		s, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		if s.String() != tt.text || s.ID() != tt.id {
			t.Errorf("Parse(%q): %s with ID %s, want %s with ID %s", tt.in, s, s.ID(), tt.text, tt.id)
		}
	}
}
