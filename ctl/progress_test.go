package ctl

import (
	"bytes"
	"os"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	at := time.Unix(0, 0)
	p := &progress{w: &out, what: "addresses", total: 100, shown: at, now: func() time.Time { return at }}
	p.add(10) // too soon
	at = at.Add(progressEvery)
	p.add(10)
	p.add(10)
	p.end()
	if got, want := out.String(), "\r20 of 100 addresses\x1b[K\r\x1b[K"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestProgressIsForTerminals: neither a buffer nor a file shows it.
func TestProgressIsForTerminals(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := &app{Options: Options{Stderr: f}}
	if p := a.progress("x", 1); p.w != nil {
		t.Error("a file is no terminal")
	}
	a.Stderr = &bytes.Buffer{}
	p := a.progress("x", 1)
	p.add(1)
	p.end()
	if p.w != nil {
		t.Error("a buffer is no terminal")
	}
}
