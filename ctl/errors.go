package ctl

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/manekinet/maneki/agentapi"
	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config/strict"
	"github.com/manekinet/maneki/datastore"
	"github.com/manekinet/maneki/exit"
	"github.com/manekinet/maneki/resource"
)

// classify finds the class of an error that nobody has classified yet.
func classify(err error) exit.Code {
	var fields *api.FieldErrors
	var syntax *strict.Error
	switch {
	case err == nil:
		return exit.OK
	case errors.As(err, &fields), errors.As(err, &syntax), errors.Is(err, resource.ErrUnsupported):
		return exit.Input
	case errors.Is(err, datastore.ErrNotFound):
		return exit.NotFound
	case errors.Is(err, datastore.ErrExists), errors.Is(err, datastore.ErrConflict):
		return exit.Conflict
	case errors.Is(err, datastore.ErrUnavailable):
		return exit.Unreachable
	case errors.Is(err, datastore.ErrDenied), errors.Is(err, fs.ErrPermission):
		return exit.Denied
	case errors.Is(err, agentapi.ErrNotRunning):
		return exit.NotRunning
	}
	return exit.General
}

// identifier is how calicoctl names a resource in its errors.
func identifier(kind, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return kind + "(" + name + ")"
}

func identifierOf(o api.Object) string {
	return identifier(o.Type().Kind, o.Meta().Namespace, o.Meta().Name)
}

// describe adds class and remedy to what happened to one resource; package
// resource words it as calicoctl does. The verb is "create", "apply", ...
func (a *app) describe(verb, id string, err error) error {
	var classified *exit.Error
	if err == nil || errors.As(err, &classified) {
		return err
	}
	kind, _, _ := strings.Cut(id, "(")
	remedy := ""
	switch {
	case errors.Is(err, datastore.ErrNotFound) && verb == "replace":
		remedy = "use create or apply to make a new one"
	case errors.Is(err, datastore.ErrNotFound):
		remedy = fmt.Sprintf("'%s get %s' lists what there is", a.Name, kind)
		if verb == "delete" {
			remedy += ", --skip-not-exists ignores it"
		}
	case errors.Is(err, datastore.ErrExists):
		remedy = "use apply or replace to change it, --skip-exists to keep it"
	case errors.Is(err, datastore.ErrConflict):
		remedy = "get it again, repeat the edit there and apply that"
	case errors.Is(err, datastore.ErrUnavailable):
		remedy = "check that the datastore runs and repeat the command"
	}
	return exit.New(classify(err), remedy, err)
}

// bare is the text of err without its remedy.
func bare(err error) string {
	var e *exit.Error
	if errors.As(err, &e) {
		return strings.TrimRight(e.Err.Error(), "\n")
	}
	return err.Error()
}

func remedyOf(err error) string {
	var e *exit.Error
	if errors.As(err, &e) {
		return e.Remedy
	}
	return ""
}

// bracketed prints several errors as calicoctl does: [first second].
func bracketed(errs []error) string {
	texts := make([]string, 0, len(errs))
	for _, err := range errs {
		texts = append(texts, bare(err))
	}
	return "[" + strings.Join(texts, " ") + "]"
}
