// Package exit holds the exit codes of every maneki command and the error that
// carries one together with its remedy. A command returns an *Error; main
// prints Line of it and ends with its code.
package exit

import (
	"errors"
	"strings"
)

// Code is a process exit code.
type Code int

// One code per class of error, the same for every verb.
const (
	OK          Code = 0
	General     Code = 1 // none of the classes below
	Usage       Code = 2 // unknown command, flag or argument
	Input       Code = 3 // a file, resource or configuration that is not valid
	NotFound    Code = 4 // the resource named is not there
	Conflict    Code = 5 // it is there already, or somebody else changed it
	Unreachable Code = 6 // the datastore does not answer
	Denied      Code = 7 // root, credentials or a certificate are missing or refused
	NotRunning  Code = 8 // the agent of this host does not run
	Busy        Code = 9 // a port, lock or name is taken
)

// Error is an error with its class and what the user can do about it.
type Error struct {
	Code   Code
	Err    error
	Remedy string // an imperative clause without a full stop; empty when Err says it all
}

// New returns err with a class and a remedy, or nil when err is nil.
func New(code Code, remedy string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Remedy: remedy}
}

// Error gives the error followed by its remedy.
func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Err.Error()
	}
	return strings.TrimRight(e.Err.Error(), "\n") + "; " + e.Remedy
}

// Unwrap returns the error without its remedy.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the class of err: OK for nil, the Code of the outermost *Error
// in its chain, else General.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return General
}
