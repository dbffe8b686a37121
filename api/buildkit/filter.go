package buildkit

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"

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

// recordField returns a field of a build, as filters name it.
func recordField(r *control.BuildHistoryRecord, field string) (string, bool) {
	switch field {
	case "ref":
		return r.GetRef(), true
	case "repository":
		if v := r.GetFrontendAttrs()["vcs:source"]; v != "" {
			return v, true
		}
		return repository(r.GetFrontendAttrs()["context"]), true
	case "status":
		switch {
		case r.GetCompletedAt() == nil:
			return "running", true
		case r.GetError() == nil:
			return "completed", true
		case codes.Code(r.GetError().GetCode()) == codes.Canceled:
			return "canceled", true
		}
		return "error", true
	}
	return "", false
}

// repository is the address of a git repository that is a build's context, without what is chosen of it.
func repository(context string) string {
	addr, _, _ := strings.Cut(context, "#")
	addr, query, _ := strings.Cut(addr, "?")
	if strings.HasSuffix(addr, ".git") || strings.HasPrefix(addr, "git@") || strings.HasPrefix(addr, "git://") || strings.Contains(query, "ref=") {
		return addr
	}
	return ""
}

// historyFilter makes a predicate of filters such as "status==error" and "startedAt>24h,ref==X". Of several one must hold.
func historyFilter(filters []string) (func(*control.BuildHistoryRecord) bool, error) {
	var any []func(*control.BuildHistoryRecord) bool
	for _, f := range filters {
		var plain []string
		var all []func(*control.BuildHistoryRecord) bool
		for _, c := range strings.Split(f, ",") {
			m, err := timeCondition(c)
			switch {
			case err != nil:
				return nil, err
			case m != nil:
				all = append(all, m)
			case c != "":
				plain = append(plain, c)
			}
		}
		m, err := matcher([]string{strings.Join(plain, ",")}, recordField)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
		any = append(any, func(r *control.BuildHistoryRecord) bool {
			return !slices.ContainsFunc(all, func(m func(*control.BuildHistoryRecord) bool) bool { return !m(r) })
		})
	}
	return func(r *control.BuildHistoryRecord) bool {
		return len(any) == 0 || slices.ContainsFunc(any, func(m func(*control.BuildHistoryRecord) bool) bool { return m(r) })
	}, nil
}

// timeCondition makes a predicate of a condition on a time or on how long a build took: startedAt>2h, completedAt<=2026-01-02T15:04:05Z,
// duration>=30s. A time that is given as a duration is so long ago. It is nil for other conditions.
func timeCondition(c string) (func(*control.BuildHistoryRecord) bool, error) {
	i := strings.IndexAny(c, "<>")
	if i < 0 {
		return nil, nil
	}
	field, op, value := strings.TrimSpace(c[:i]), c[i:i+1], c[i+1:]
	if rest, ok := strings.CutPrefix(value, "="); ok {
		op, value = op+"=", rest
	}
	length, err := time.ParseDuration(value)
	limit := time.Now().Add(-length)
	switch {
	case field != "startedAt" && field != "completedAt" && field != "duration":
		return nil, nil
	case err != nil && field == "duration":
		return nil, diag.Errorf(diag.Invalid, "invalid duration %s", value)
	case err != nil:
		if limit, err = time.Parse(time.RFC3339, value); err != nil {
			return nil, diag.Errorf(diag.Invalid, "invalid time %s", value)
		}
	}
	return func(r *control.BuildHistoryRecord) bool {
		var n int
		started, ended := r.GetCreatedAt().AsTime(), r.GetCompletedAt().AsTime() // 1970 for what has not ended
		switch field {
		case "startedAt":
			n = started.Compare(limit)
		case "completedAt":
			n = ended.Compare(limit)
		default:
			took := time.Duration(0)
			if r.GetCompletedAt() != nil {
				took = ended.Sub(started)
			}
			n = cmp.Compare(took, length)
		}
		return n > 0 && op[0] == '>' || n < 0 && op[0] == '<' || n == 0 && len(op) == 2
	}, nil
}
