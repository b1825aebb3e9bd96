package api

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the errors in testdata/bad.txtar")

// Every input of the corpus is refused with exactly the error that stands
// beside it, the way package ctl reads: split, decode, default, validate.
func TestBadInput(t *testing.T) {
	const file = "testdata/bad.txtar"
	corpus, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(corpus.Files); i += 2 {
		in, want := corpus.Files[i], &corpus.Files[i+1]
		if want.Name != in.Name+".error" {
			t.Fatalf("%s is followed by %s", in.Name, want.Name)
		}
		err := read(in.Data)
		if err == nil {
			t.Errorf("%s is accepted", in.Name)
			continue
		}
		if *update {
			want.Data = []byte(err.Error() + "\n")
		}
		if got := err.Error() + "\n"; got != string(want.Data) {
			t.Errorf("%s\n got %swant %s", in.Name, got, want.Data)
		}
		var fields *FieldErrors
		one := !errors.As(err, &fields) || len(fields.List) == 1
		if one && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the error has several lines", in.Name)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(corpus), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func read(in []byte) error {
	docs, err := SplitDocuments(bytes.NewReader(in))
	if err != nil {
		return err
	}
	for _, d := range docs {
		o, err := DecodeStrict(d)
		if err != nil {
			return err
		}
		o.Default()
		if err := o.Validate(); err != nil {
			return err
		}
	}
	return nil
}
