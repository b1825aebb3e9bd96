package exit_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/manekinet/maneki/exit"
)

func TestCodeOf(t *testing.T) {
	cause := errors.New("cause")
	tests := []struct {
		name string
		err  error
		code exit.Code
		text string
	}{
		{"nil", nil, exit.OK, ""},
		{"plain", cause, exit.General, "cause"},
		{"classified", exit.New(exit.Busy, "stop the other agent", cause), exit.Busy, "cause; stop the other agent"},
		{"no remedy", exit.New(exit.Input, "", cause), exit.Input, "cause"},
		{"wrapped", fmt.Errorf("run node: %w", exit.New(exit.Denied, "run as root", cause)), exit.Denied, "run node: cause; run as root"},
		{"outermost wins", exit.New(exit.Input, "", exit.New(exit.Denied, "", cause)), exit.Input, "cause"},
		{"New of nil", exit.New(exit.Busy, "x", nil), exit.OK, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := exit.CodeOf(tt.err); got != tt.code {
				t.Errorf("CodeOf = %d, want %d", got, tt.code)
			}
			if tt.err == nil {
				return
			}
			if tt.err.Error() != tt.text {
				t.Errorf("Error() = %q, want %q", tt.err.Error(), tt.text)
			}
			if !errors.Is(tt.err, cause) {
				t.Error("the cause is not in the chain")
			}
		})
	}
}
