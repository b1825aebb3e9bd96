package jsonpatch_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/manekinet/maneki/ctl/jsonpatch"
)

// The examples of RFC 6902 Appendix A and more; want begins with "!" for an
// error that must hold the rest.
func TestApply(t *testing.T) {
	tests := []struct{ name, doc, patch, want string }{
		{"A.1 add member", `{"foo":"bar"}`, `[{"op":"add","path":"/baz","value":"qux"}]`, `{"baz":"qux","foo":"bar"}`},
		{"A.2 add item", `{"foo":["bar","baz"]}`, `[{"op":"add","path":"/foo/1","value":"qux"}]`, `{"foo":["bar","qux","baz"]}`},
		{"A.3 remove member", `{"baz":"qux","foo":"bar"}`, `[{"op":"remove","path":"/baz"}]`, `{"foo":"bar"}`},
		{"A.4 remove item", `{"foo":["bar","qux","baz"]}`, `[{"op":"remove","path":"/foo/1"}]`, `{"foo":["bar","baz"]}`},
		{"A.5 replace", `{"baz":"qux","foo":"bar"}`, `[{"op":"replace","path":"/baz","value":"boo"}]`, `{"baz":"boo","foo":"bar"}`},
		{
			"A.6 move", `{"foo":{"bar":"baz","waldo":"fred"},"qux":{"corge":"grault"}}`, `[{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]`,
			`{"foo":{"bar":"baz"},"qux":{"corge":"grault","thud":"fred"}}`,
		},
		{"A.7 move item", `{"foo":["all","grass","cows","eat"]}`, `[{"op":"move","from":"/foo/1","path":"/foo/3"}]`, `{"foo":["all","cows","eat","grass"]}`},
		{"A.8 test", `{"baz":"qux","foo":["a",2,"c"]}`, `[{"op":"test","path":"/baz","value":"qux"},{"op":"test","path":"/foo/1","value":2}]`, `{"baz":"qux","foo":["a",2,"c"]}`},
		{"A.9 test fails", `{"baz":"qux"}`, `[{"op":"test","path":"/baz","value":"bar"}]`, `!operation 0 (test /baz): the value there is "qux", not "bar"`},
		{"A.10 nested", `{"foo":"bar"}`, `[{"op":"add","path":"/child","value":{"grandchild":{}}}]`, `{"child":{"grandchild":{}},"foo":"bar"}`},
		{"A.11 unknown member ignored", `{"foo":"bar"}`, `[{"op":"add","path":"/baz","value":"qux","xyz":123}]`, `{"baz":"qux","foo":"bar"}`},
		{"A.12 no parent", `{"foo":"bar"}`, `[{"op":"add","path":"/baz/bat","value":"qux"}]`, `!there is no "baz"`},
		{"A.14 escapes", `{"/":9,"~1":10}`, `[{"op":"test","path":"/~01","value":10}]`, `{"/":9,"~1":10}`},
		{"A.15 no mixed types", `{"/":9,"~1":10}`, `[{"op":"test","path":"/~01","value":"10"}]`, `!the value there is 10, not "10"`},
		{"A.16 append", `{"foo":["bar"]}`, `[{"op":"add","path":"/foo/-","value":["abc","def"]}]`, `{"foo":["bar",["abc","def"]]}`},
		{"numbers by value", `{"a":1.50}`, `[{"op":"test","path":"/a","value":15e-1}]`, `{"a":1.50}`},
		{"numbers differ", `{"a":9007199254740993}`, `[{"op":"test","path":"/a","value":9007199254740992}]`, `!9007199254740993, not 9007199254740992`},
		{"zero", `{"a":0}`, `[{"op":"test","path":"/a","value":-0.0}]`, `{"a":0}`},
		{"texts by characters", `{"a":"\u0041"}`, `[{"op":"test","path":"/a","value":"A"}]`, `{"a":"\u0041"}`},
		{"objects without order", `{"a":{"x":1,"y":[null]}}`, `[{"op":"test","path":"/a","value":{"y":[null],"x":1}}]`, `{"a":{"x":1,"y":[null]}}`},
		{"null is a value", `{}`, `[{"op":"add","path":"/a","value":null}]`, `{"a":null}`},
		{"whole document", `{"a":1}`, `[{"op":"replace","path":"","value":[1]}]`, `[1]`},
		{"copy is deep", `{"a":{"b":1}}`, `[{"op":"copy","from":"/a","path":"/c"},{"op":"replace","path":"/c/b","value":2}]`, `{"a":{"b":1},"c":{"b":2}}`},
		{"empty key", `{"":1}`, `[{"op":"remove","path":"/"}]`, `{}`},
		{"big number kept", `{"a":123456789012345678901234567890,"b":0}`, `[{"op":"remove","path":"/b"}]`, `{"a":123456789012345678901234567890}`},
		{"nothing to do", `{"a":1}`, `[]`, `{"a":1}`},

		{"all or nothing", `{"a":1}`, `[{"op":"remove","path":"/a"},{"op":"remove","path":"/a"}]`, `!operation 1 (remove /a): there is no "a"`},
		{"replace needs one", `{}`, `[{"op":"replace","path":"/a","value":1}]`, `!there is no "a"`},
		{"beyond the end", `[1]`, `[{"op":"add","path":"/2","value":1}]`, `!index 2 is beyond the end of the list, which has 2 items`},
		{"dash names no item", `[1]`, `[{"op":"remove","path":"/-"}]`, `!"-" is no index of a list`},
		{"leading zero", `[1]`, `[{"op":"remove","path":"/00"}]`, `!"00" is no index of a list`},
		{"negative", `[1]`, `[{"op":"remove","path":"/-1"}]`, `!"-1" is no index of a list`},
		{"into a text", `{"a":"b"}`, `[{"op":"add","path":"/a/c","value":1}]`, `!there is no place for "c" inside "b"`},
		{"through a text", `{"a":"b"}`, `[{"op":"add","path":"/a/c/d","value":1}]`, `!there is no "c" inside "b"`},
		{"into itself", `{"a":{}}`, `[{"op":"move","from":"/a","path":"/a/b"}]`, `!"/a" cannot move into itself`},
		{"move nowhere", `{"a":1}`, `[{"op":"move","from":"/a","path":"/a"}]`, `{"a":1}`},
		{"no slash", `{}`, `[{"op":"add","path":"a","value":1}]`, `!"a" is no JSON pointer`},
		{"bad escape", `{}`, `[{"op":"add","path":"/a~0~2","value":1}]`, `!after ~ comes 0 or 1`},
		{"no path", `{}`, `[{"op":"add","value":1}]`, `!"path" is missing`},
		{"no value", `{}`, `[{"op":"add","path":"/a"}]`, `!"value" is missing`},
		{"no from", `{}`, `[{"op":"copy","path":"/a"}]`, `!"from" is missing`},
		{"bad op", `{}`, `[{"op":"put","path":"/a"}]`, `!"op" is "put"`},
		{"removed", `{}`, `[{"op":"remove","path":""}]`, `!removes the whole document`},
		{"after removal", `{}`, `[{"op":"remove","path":""},{"op":"add","path":"/a","value":1}]`, `!the document was removed`},
		{"no list", `{}`, `{"spec":{}}`, `!a JSON patch is a list of operations`},
		{"null", `{}`, `null`, `!a JSON patch is a list of operations`},
		{"trailing", `{}`, `[] []`, `!text follows`},
		{"no document", `{`, `[]`, `!document: not JSON`},
	}
	for _, tt := range tests {
		got, err := jsonpatch.Apply([]byte(tt.doc), []byte(tt.patch))
		check(t, tt.name, string(got), err, tt.want)
	}
}

// TestCopiesAreBounded doubles the document until it is refused.
func TestCopiesAreBounded(t *testing.T) {
	double := `{"op":"copy","from":"","path":"/-"}`
	_, err := jsonpatch.Apply([]byte(`[1]`), []byte("["+strings.Repeat(double+",", 60)+double+"]"))
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("61 doublings: %v", err)
	}
}

// The examples of RFC 7386 Appendix A.
func TestMerge(t *testing.T) {
	tests := [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		{`{}`, `{`, `!patch: not JSON`},
		{`{"$patch":1}`, `{"a":{"$patch":"delete"}}`, `{"$patch":1,"a":{"$patch":"delete"}}`},
	}
	for _, tt := range tests {
		got, err := jsonpatch.Merge([]byte(tt[0]), []byte(tt[1]))
		check(t, tt[1], string(got), err, tt[2])
	}
}

func TestStrategic(t *testing.T) {
	tests := [][3]string{
		{`{"spec":{"bgp":{"asNumber":1},"x":[1,2]}}`, `{"spec":{"bgp":{"cluster":"c"},"x":[3]}}`, `{"spec":{"bgp":{"asNumber":1,"cluster":"c"},"x":[3]}}`},
		{`{"a":{"b":1,"c":2}}`, `{"a":{"$patch":"replace","d":3}}`, `{"a":{"d":3}}`},
		{`{"a":{"b":1,"c":2}}`, `{"a":{"$patch":"merge","d":3}}`, `{"a":{"b":1,"c":2,"d":3}}`},
		{`{"a":{"b":1},"e":1}`, `{"a":{"$patch":"delete"}}`, `{"e":1}`},
		{`{"a":{"b":1}}`, `{"a":{"b":null}}`, `{"a":{}}`},
		{`{"a":1}`, `{"$patch":"delete"}`, `null`},
		{`{}`, `{"a":{"$patch":"drop"}}`, `!directive a.$patch is "drop", it must be merge, replace or delete`},
		{`{}`, `{"a":{"$setElementOrder/x":[]}}`, `!directive a.$setElementOrder/x is not supported`},
		{`{}`, `{"a":[{"$patch":"delete","name":"n"}]}`, `!directive a.$patch of item 0 is not supported`},
	}
	for _, tt := range tests {
		got, err := jsonpatch.Strategic([]byte(tt[0]), []byte(tt[1]))
		check(t, tt[1], string(got), err, tt[2])
	}
}

func check(t *testing.T, name, got string, err error, want string) {
	t.Helper()
	if text, fails := strings.CutPrefix(want, "!"); fails {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %s, %v, want error %q", name, got, err, text)
		}
		return
	}
	if err != nil || got != want {
		t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
	}
}

// value generates any JSON value as encoding/json has it.
func value(depth int) *rapid.Generator[any] {
	leaf := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Float64Range(-1e6, 1e6).AsAny(), rapid.StringN(0, 4, -1).AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(leaf...)
	}
	key := rapid.SampledFrom([]string{"a", "b", "c/d", "~", ""})
	return rapid.OneOf(append(leaf,
		rapid.MapOfN(key, rapid.Deferred(func() *rapid.Generator[any] { return value(depth - 1) }), 0, 4).AsAny(),
		rapid.SliceOfN(rapid.Deferred(func() *rapid.Generator[any] { return value(depth - 1) }), 0, 3).AsAny())...)
}

// diffOf is the merge patch that makes b of a, if there is one: a patch cannot
// set null.
func diffOf(a, b any) any {
	x, okX := a.(map[string]any)
	y, okY := b.(map[string]any)
	if !okX || !okY {
		return b
	}
	p := map[string]any{}
	for k := range x {
		if _, there := y[k]; !there {
			p[k] = nil
		}
	}
	for k, v := range y {
		if w, there := x[k]; there {
			p[k] = diffOf(w, v)
		} else {
			p[k] = v
		}
	}
	return p
}

func withoutNull(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, w := range v {
			if w == nil {
				delete(v, k)
			} else {
				v[k] = withoutNull(w)
			}
		}
	}
	return v
}

// TestMergeReaches: for any two documents the patch between them leads from one
// to the other, and again changes nothing.
func TestMergeReaches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := value(3).Draw(t, "a"), withoutNull(value(3).Draw(t, "b"))
		doc, _ := json.Marshal(a)
		patch, _ := json.Marshal(diffOf(a, b))
		for range 2 {
			var err error
			if doc, err = jsonpatch.Merge(doc, patch); err != nil {
				t.Fatal(err)
			}
			var got, want any
			text, _ := json.Marshal(b)
			if json.Unmarshal(doc, &got) != nil || json.Unmarshal(text, &want) != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s + %s = %s, want %s", text, patch, doc, text)
			}
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":2}]}`), []byte(`[{"op":"move","from":"/a/1","path":"/c"},{"op":"test","path":"/a/0","value":1e0}]`))
	f.Add([]byte(`[]`), []byte(`[{"op":"copy","from":"","path":"/-"}]`))
	f.Fuzz(func(t *testing.T, doc, patch []byte) {
		for _, how := range []func(doc, patch []byte) ([]byte, error){jsonpatch.Apply, jsonpatch.Merge, jsonpatch.Strategic} {
			if got, err := how(doc, patch); err == nil && !json.Valid(got) {
				t.Errorf("%s with %s gives %s", doc, patch, got)
			}
		}
	})
}
