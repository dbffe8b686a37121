package buildkit

import (
	"regexp"
	"strings"

	"github.com/strata-build/strata/diag"
)

// matcher makes a predicate of filters in containerd's form: conditions FIELD==VALUE, FIELD!=VALUE or FIELD~=PATTERN, joined
// by commas, of which all must hold; of several filters one must. FIELD alone means that it is set. get returns a field's
// value, and false for fields that do not exist.
func matcher[T any](filters []string, get func(T, string) (string, bool)) (func(T) bool, error) {
	var any []func(T) bool
	for _, f := range filters {
		if f == "" {
			continue // clients send it for no filter
		}
		var all []func(T) bool
		for _, c := range strings.Split(f, ",") {
			m, err := condition(c, get)
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		any = append(any, func(v T) bool {
			for _, m := range all {
				if !m(v) {
					return false
				}
			}
			return true
		})
	}
	return func(v T) bool {
		for _, m := range any {
			if m(v) {
				return true
			}
		}
		return len(any) == 0
	}, nil
}

func condition[T any](c string, get func(T, string) (string, bool)) (func(T) bool, error) {
	i := strings.IndexAny(c, "=!~")
	field, op, value := c, "", ""
	if i >= 0 {
		if len(c) < i+2 || c[i+1] != '=' {
			return nil, diag.Errorf(diag.Invalid, "filter %q: it must be FIELD==VALUE, FIELD!=VALUE or FIELD~=PATTERN", c)
		}
		field, op, value = c[:i], c[i:i+2], strings.Trim(c[i+2:], `"`)
	}
	field = strings.ToLower(strings.TrimSpace(field))
	var zero T
	if _, ok := get(zero, field); !ok {
		return nil, diag.Errorf(diag.Invalid, "filter %q: there is no field %q", c, field)
	}
	var re *regexp.Regexp
	if op == "~=" {
		var err error
		if re, err = regexp.Compile(value); err != nil {
			return nil, diag.Errorf(diag.Invalid, "filter %q: %w", c, err)
		}
	}
	return func(v T) bool {
		got, _ := get(v, field)
		switch op {
		case "==":
			return got == value
		case "!=":
			return got != value
		case "~=":
			return re.MatchString(got)
		}
		return got != "" && got != "false"
	}, nil
}
