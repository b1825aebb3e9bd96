package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// source is what the text of package api says beside what reflection can see:
// comments, and the values of enumerations.
type source struct {
	structs map[string]*structure
	values  map[string][]string // of the constants of a type
}

type structure struct {
	doc    string
	fields []field
}

type field struct {
	name     string // in JSON; empty for an embedded struct
	embedded string // its type
	kind     ast.Expr
	comment  string
}

// origin is where a comment has its facts from, which is of no use to a reader of
// the pages.
var origin = regexp.MustCompile(`\s*\((spec|RFC)[^()]*\)`)

func readSource(dir string) (*source, error) {
	s := &source{structs: map[string]*structure{}, values: map[string][]string{}}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("read %s: %w", dir, fs.ErrNotExist)
	}
	slices.Sort(files)
	set := token.NewFileSet()
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok {
				s.add(g)
			}
		}
	}
	return s, nil
}

func (s *source) add(g *ast.GenDecl) {
	for _, spec := range g.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if t, ok := spec.Type.(*ast.StructType); ok {
				s.structs[spec.Name.Name] = &structure{doc: origin.ReplaceAllString(g.Doc.Text(), ""), fields: fields(t)}
			}
		case *ast.ValueSpec:
			if t, ok := spec.Type.(*ast.Ident); ok && g.Tok == token.CONST {
				for _, v := range spec.Values {
					if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						s.values[t.Name] = append(s.values[t.Name], lit.Value)
					}
				}
			}
		}
	}
}

func fields(t *ast.StructType) []field {
	var out []field
	for _, f := range t.Fields.List {
		if len(f.Names) == 0 {
			if id, ok := f.Type.(*ast.Ident); ok {
				out = append(out, field{embedded: id.Name})
			}
			continue
		}
		if f.Tag == nil || !f.Names[0].IsExported() {
			continue
		}
		name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		comment := strings.TrimSpace(f.Comment.Text())
		if comment == "" {
			comment = strings.Join(strings.Fields(f.Doc.Text()), " ")
		}
		out = append(out, field{name: name, kind: f.Type, comment: comment})
	}
	return out
}

// word says in a reader's words what a field holds, and which struct, if one, is
// to be explained.
func (s *source) word(e ast.Expr) (text, below string) {
	switch e := e.(type) {
	case *ast.StarExpr:
		return s.word(e.X)
	case *ast.ArrayType:
		text, below = s.word(e.Elt)
		return "list of " + text, below
	case *ast.MapType:
		text, below = s.word(e.Value)
		return "map to " + text, below
	case *ast.SelectorExpr:
		return "time", ""
	case *ast.Ident:
		if _, ok := s.structs[e.Name]; ok && !opaque(e.Name) {
			return "[" + e.Name + "](#" + strings.ToLower(e.Name) + ")", e.Name
		}
		return s.scalar(e.Name), ""
	}
	return "value", ""
}

// opaque structs are scalars in JSON.
func opaque(name string) bool {
	return slices.Contains([]string{"Duration", "IntOrString", "StoredBool"}, name)
}

func (s *source) scalar(name string) string {
	switch name {
	case "string":
		return "text"
	case "bool", "StoredBool":
		return "true or false"
	case "Duration":
		return "duration, such as `90s`"
	case "IntOrString":
		return "number or text"
	case "ASNumber":
		return "AS number"
	}
	if strings.HasPrefix(name, "int") || strings.HasPrefix(name, "uint") || strings.HasPrefix(name, "float") {
		return "number"
	}
	if values := s.values[name]; len(values) > 0 {
		return "one of " + strings.Join(values, ", ")
	}
	return "text"
}
