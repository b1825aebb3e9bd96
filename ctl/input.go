package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/api"
	"github.com/manekinet/maneki/config/strict"
	"github.com/manekinet/maneki/convert"
	"github.com/manekinet/maneki/exit"
)

// inputFlags are the flags of the verbs that read resources from files.
type inputFlags struct {
	filename  string
	recursive bool
	skipEmpty bool
	namespace string
}

func (in *inputFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&in.filename, "filename", "f", "", "file or directory to read the resources from, - for stdin")
	f.BoolVarP(&in.recursive, "recursive", "R", false, "read the directories below the one named too")
	f.BoolVar(&in.skipEmpty, "skip-empty", false, "a file or directory without resources is no error")
	in.registerNamespace(c)
}

func (in *inputFlags) registerNamespace(c *cobra.Command) {
	c.Flags().StringVarP(&in.namespace, "namespace", "n", "", "namespace of namespaced resources that name none (default \"default\")")
}

// item is one resource as somebody typed it.
type item struct {
	kind   api.Kind
	object api.Object
	where  string // file and line
}

func (i item) id() string { return identifierOf(i.object) }

var errNoResources = errors.New("No resources specified") //nolint:staticcheck // calicoctl's wording

// read parses every document of the input. Nothing has been written when it
// returns an error.
func (in *inputFlags) read(stdin io.Reader) ([]item, error) {
	if in.filename == "" {
		return nil, exit.New(exit.Usage, "name a file, a directory or - with -f", errNoResources)
	}
	docs, err := in.documents(stdin)
	if err != nil {
		return nil, exit.New(exit.Input, "", fmt.Errorf("failed to execute command: %w", err))
	}
	var items []item
	for _, d := range docs {
		more, err := in.parse(d)
		if err != nil {
			return nil, exit.New(exit.Input, "nothing was changed", fmt.Errorf("failed to execute command: %w", err))
		}
		items = append(items, more...)
	}
	if len(items) == 0 && !in.skipEmpty {
		return nil, exit.New(exit.Input, "--skip-empty makes that no error", fmt.Errorf("%w in %s", errNoResources, in.filename))
	}
	return items, nil
}

// documents reads the file, the files of the directory in the order of their
// names, or stdin.
func (in *inputFlags) documents(stdin io.Reader) ([]strict.Document, error) {
	if in.filename == "-" {
		text, err := readBounded(stdin, "stdin", 0)
		return strict.Split("stdin", text), err
	}
	files, err := in.files()
	if err != nil {
		return nil, err
	}
	var docs []strict.Document
	for _, name := range files {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		docs = append(docs, strict.Split(name, text)...)
	}
	return docs, nil
}

func (in *inputFlags) files() ([]string, error) {
	info, err := os.Stat(in.filename)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			at.Op = "open" // calicoctl's word, which scripts look for
		}
		return nil, err
	}
	if !info.IsDir() {
		return []string{in.filename}, nil
	}
	var files []string
	err = filepath.WalkDir(in.filename, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != in.filename && !in.recursive:
			return fs.SkipDir
		case e.IsDir():
			return nil
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int64(0)
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	return readBounded(f, name, size)
}

// readBounded reads to the end; size is how much that will be, as far as it is
// known.
func readBounded(r io.Reader, name string, size int64) ([]byte, error) {
	var text bytes.Buffer
	if size <= strict.MaxBytes {
		text.Grow(int(size) + bytes.MinRead)
		if _, err := text.ReadFrom(io.LimitReader(r, strict.MaxBytes+1)); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	if max(size, int64(text.Len())) > strict.MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d MiB", name, strict.MaxBytes>>20)
	}
	return text.Bytes(), nil
}

// parse turns one document into resources: a single one, a YAML list of them,
// or what `get -o yaml` prints for several, an IPPoolList.
func (in *inputFlags) parse(d strict.Document) ([]item, error) {
	where := fmt.Sprintf("%s:%d", d.Source, d.Line)
	texts, err := api.SplitDocuments(bytes.NewReader(d.Text))
	if err != nil {
		return nil, syntaxError(d, err)
	}
	var items []item
	for _, text := range texts {
		if convert.IsKubernetes(text) {
			more, err := in.fromKubernetes(text, where)
			if err != nil {
				return nil, fieldError(d, err)
			}
			items = append(items, more...)
			continue
		}
		o, err := api.DecodeStrict(text)
		if err != nil {
			return nil, fieldError(d, err)
		}
		kind, err := api.LookupKind(o.Type().Kind)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		if err := in.placeInNamespace(kind, o); err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		items = append(items, item{kind: kind, object: o, where: where})
	}
	return items, nil
}

// fieldError adds the file and the line of the first field that is wrong.
func fieldError(d strict.Document, err error) error {
	line := d.Line
	var wrong *api.FieldErrors
	if errors.As(err, &wrong) && len(wrong.List) > 0 {
		path := strings.Split(wrong.List[0].Field, ".")
		if k, kindErr := api.LookupKind(path[0]); kindErr == nil && k.Name == path[0] {
			path = path[1:]
		}
		line = d.LineOf(path)
	}
	return fmt.Errorf("%s:%d: %w", d.Source, line, err)
}

// yamlPosition is where the parser saw an error: the document's line in what it
// was given and the line in that document.
var yamlPosition = regexp.MustCompile(`in the document at line (\d+): (?:line (\d+): )?`)

// syntaxError words the error of a document with the line of its file.
func syntaxError(d strict.Document, err error) error {
	line, text := d.Line, err.Error()
	if m := yamlPosition.FindStringSubmatch(text); m != nil {
		first, _ := strconv.Atoi(m[1])  // digits, by the expression
		within, _ := strconv.Atoi(m[2]) // or 0 for none
		line += first - 1 + max(within, 1) - 1
		text = strings.Replace(text, " "+m[0], ": ", 1)
	}
	return &strict.Error{Source: d.Source, Line: line, Reason: strings.ReplaceAll(text, "\n", " ")}
}

// placeInNamespace fills in the namespace by calicoctl's rules.
func (in *inputFlags) placeInNamespace(k api.Kind, o api.Object) error {
	m := o.Meta()
	switch {
	case !k.Namespaced && m.Namespace != "":
		return fmt.Errorf("namespace should not be specified for a non-namespaced resource. %s is not a namespaced resource", k.Name)
	case !k.Namespaced && in.namespace != "":
		return fmt.Errorf("%s is not namespaced, leave -n out", k.Name)
	case !k.Namespaced:
	case m.Namespace != "" && in.namespace != "" && m.Namespace != in.namespace:
		return fmt.Errorf("resource namespace does not match client namespace. %s != %s", m.Namespace, in.namespace)
	case m.Namespace == "" && in.namespace != "":
		m.Namespace = in.namespace
	case m.Namespace == "":
		m.Namespace = defaultNamespace
	}
	return nil
}

const defaultNamespace = "default"
