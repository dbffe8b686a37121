package dockerfile

import (
	"maps"
	"slices"
	"strings"
)

// env is an ordered set of variables; it is the shell package's EnvGetter.
type env struct {
	keys []string
	vals map[string]string
	size int // bytes of names and values
}

func newEnv() *env { return &env{vals: map[string]string{}} }

func (e *env) Get(k string) (string, bool) {
	v, ok := e.vals[k]
	return v, ok
}

func (e *env) Keys() []string { return slices.Clone(e.keys) }

// set puts a variable last, also one that is there: the order is part of a step's key, and BuildKit's caches know it so.
func (e *env) set(k, v string) {
	e.unset(k)
	e.keys = append(e.keys, k)
	e.vals[k] = v
	e.size += len(k) + len(v)
}

func (e *env) unset(k string) {
	if v, ok := e.vals[k]; ok {
		delete(e.vals, k)
		e.size -= len(k) + len(v)
		e.keys = slices.DeleteFunc(e.keys, func(s string) bool { return s == k })
	}
}

func (e *env) clone() *env {
	return &env{keys: slices.Clone(e.keys), vals: maps.Clone(e.vals), size: e.size}
}

// list is the NAME=value form.
func (e *env) list() []string {
	out := make([]string, len(e.keys))
	for i, k := range e.keys {
		out[i] = k + "=" + e.vals[k]
	}
	return out
}

// setList sets a variable in a NAME=value list.
func setList(list []string, k, v string) []string {
	for i, kv := range list {
		if key, _, _ := strings.Cut(kv, "="); key == k {
			list[i] = k + "=" + v
			return list
		}
	}
	return append(list, k+"="+v)
}

func lookupList(list []string, k string) (string, bool) {
	for _, kv := range list {
		if key, v, _ := strings.Cut(kv, "="); key == k {
			return v, true
		}
	}
	return "", false
}
