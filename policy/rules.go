package policy

import (
	"regexp"
	"strings"

	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/strata-build/strata/diag"
)

// maxConversions bounds how often one source is converted: rules may convert in a circle.
const maxConversions = 20

// rule is a rule with its patterns compiled.
type rule struct {
	*spb.Rule
	id      string         // the selector's identifier in normal form
	pattern *regexp.Regexp // nil for an exact match
	attrs   []*regexp.Regexp
}

// compile reads the rules of a policy. What is wrong only when a rule matches is an error then, as in BuildKit.
func compile(p *spb.Policy) ([]rule, error) {
	var out []rule
	for _, r := range p.GetRules() {
		switch {
		case r == nil:
			return nil, diag.Errorf(diag.Invalid, "invalid nil rule in policy")
		case r.Selector == nil:
			return nil, diag.Errorf(diag.Invalid, "invalid nil selector in policy")
		}
		c := rule{Rule: r, id: selector(r.Selector)}
		var err error
		if c.pattern, err = pattern(r.Selector, c.id); err != nil {
			return nil, err
		}
		for _, a := range r.Selector.Constraints {
			if a == nil {
				return nil, diag.Errorf(diag.Invalid, "invalid nil constraint in policy")
			}
			var re *regexp.Regexp
			if a.Condition == spb.AttrMatch_MATCHES {
				if re, err = regexp.Compile(a.Value); err != nil {
					return nil, diag.Errorf(diag.Invalid, "source policy: invalid regex %q: %w", a.Value, err)
				}
			}
			c.attrs = append(c.attrs, re)
		}
		out = append(out, c)
	}
	return out, nil
}

func pattern(s *spb.Selector, expr string) (*regexp.Regexp, error) {
	switch s.MatchType {
	case spb.MatchType_EXACT:
		return nil, nil
	case spb.MatchType_WILDCARD:
		if strings.Contains(expr, "**") {
			return nil, diag.Errorf(diag.Invalid, "source policy: invalid wildcard %q: it has \"**\"", expr)
		}
		expr = "^" + strings.ReplaceAll(regexp.QuoteMeta(expr), `\*`, "(.*)") + "$"
	case spb.MatchType_REGEX:
	default:
		return nil, diag.Errorf(diag.Invalid, "source policy: unknown match type: %s", s.MatchType)
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "source policy: invalid pattern %q: %w", s.Identifier, err)
	}
	return re, nil
}

// matches returns the name of the source that the rule selects, "" if it selects none.
func (r *rule) matches(src *candidate) (string, error) {
	for i, c := range r.Selector.Constraints {
		v := src.Attrs[c.Key]
		ok := false
		switch c.Condition {
		case spb.AttrMatch_EQUAL:
			ok = v == c.Value
		case spb.AttrMatch_NOTEQUAL:
			ok = v != c.Value
		case spb.AttrMatch_MATCHES:
			ok = r.attrs[i].MatchString(v)
		default:
			return "", diag.Errorf(diag.Invalid, "source policy: unknown attr condition: %s", c.Condition)
		}
		if !ok {
			return "", nil
		}
	}
	all := names(src.Identifier)
	if r.Action == spb.PolicyAction_ALLOW {
		all = all[:1]
	}
	for _, id := range all {
		if id == r.id || r.pattern != nil && r.pattern.MatchString(id) {
			return id, nil
		}
	}
	return "", nil
}

// convert changes the source, which the rule selects by a name, as the rule says, and reports whether that made a difference.
func (r *rule) convert(src *candidate, name string) (bool, error) {
	if r.Updates == nil {
		return false, diag.Errorf(diag.Invalid, "source policy: missing destination for convert rule of %s", r.Selector.Identifier)
	}
	to := src.Identifier
	if r.Updates.Identifier != "" { // else only attributes are set
		to = r.expand(r.Updates.Identifier, name)
	}
	changed := to != src.Identifier
	src.Identifier = to
	for k, v := range r.Updates.Attrs {
		if src.Attrs[k] != v {
			if src.Attrs == nil {
				src.Attrs = map[string]string{}
			}
			src.Attrs[k], changed = v, true
		}
	}
	if changed {
		src.normalize()
	}
	return changed, nil
}

// expand replaces what a pattern found in the identifier: the whole of it for a wildcard, each find for a regular expression.
func (r *rule) expand(to, id string) string {
	switch r.Selector.MatchType {
	case spb.MatchType_EXACT:
		return to
	case spb.MatchType_REGEX:
		return r.pattern.ReplaceAllString(id, to)
	}
	at := r.pattern.FindStringSubmatchIndex(id)
	if at == nil { // the identifier is the selector's, word by word
		return to
	}
	return string(r.pattern.ExpandString(nil, to, id, at))
}

// apply runs the source through the rules until none changes it any more.
func (p *Policy) apply(src *candidate) (changed bool, err error) {
	for range maxConversions {
		again, err := p.once(src)
		if err != nil {
			return changed, err
		}
		if !again {
			return changed, nil
		}
		changed = true
	}
	return changed, diag.Errorf(diag.Invalid, "source policy: too many mutations on a single source: %s", src.Identifier)
}

// once lets the policies look at the source until one converts it.
func (p *Policy) once(src *candidate) (converted bool, err error) {
	for _, rules := range p.rules {
		denied := false
		for i := range rules {
			r := &rules[i]
			name, err := r.matches(src)
			if err != nil {
				return false, err
			}
			if name == "" {
				continue
			}
			switch r.Action {
			case spb.PolicyAction_ALLOW:
				denied = false
			case spb.PolicyAction_DENY:
				denied = true
			case spb.PolicyAction_CONVERT:
				if changed, err := r.convert(src, name); changed || err != nil {
					return changed, err
				}
			default:
				return false, diag.Errorf(diag.Invalid, "source policy: rule of %s: unknown type %q", r.Selector.Identifier, r.Action.String())
			}
		}
		if denied {
			return false, diag.Errorf(diag.Denied, "source %q denied by policy: source denied by policy", src.Identifier)
		}
	}
	return false, nil
}
