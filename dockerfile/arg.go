package dockerfile

import (
	"context"
	"maps"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
)

// mainScope evaluates the predefined arguments and the ARGs above the first FROM.
func (p *planner) mainScope(ctx context.Context) error {
	p.checkDefaults()
	p.globals, p.mainArg = p.predefined(p.given), map[string]argInfo{}
	for _, c := range p.file.args {
		for _, a := range c.Args {
			info, err := p.mainArgument(a, p.given)
			if err != nil {
				return located(p.req.Source, err, c.Location())
			}
			info.at = spans(p.req.Source, c.Location())
			p.mainArg[a.Key] = info
			if p.globals.size > maxEnv {
				return diag.Errorf(diag.Exhausted, "the ARGs are longer than %d MiB together", maxEnv>>20).WithSpan(info.at...)
			}
		}
	}
	return p.setEpoch(ctx)
}

// predefined are the arguments that describe the platforms and the target.
func (p *planner) predefined(args map[string]string) *env {
	stage := p.req.Target
	if stage == "" {
		stage = p.file.stages[len(p.file.stages)-1].Name
	}
	if stage == "" {
		stage = "default"
	}
	e := newEnv()
	b, t := p.req.BuildPlatform, p.target
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", shortPlatform(b)},
		{"BUILDOS", b.OS},
		{"BUILDOSVERSION", b.OSVersion},
		{"BUILDARCH", b.Architecture},
		{"BUILDVARIANT", b.Variant},
		{"TARGETPLATFORM", graph.FormatPlatform(t)},
		{"TARGETOS", t.OS},
		{"TARGETOSVERSION", t.OSVersion},
		{"TARGETARCH", t.Architecture},
		{"TARGETVARIANT", t.Variant},
		{"TARGETSTAGE", stage},
	} {
		if v, ok := args[kv[0]]; ok {
			kv[1] = v
		}
		e.set(kv[0], kv[1])
	}
	return e
}

func (p *planner) mainArgument(a instructions.KeyValuePairOptional, given map[string]string) (argInfo, error) {
	info := argInfo{def: a}
	if v, ok := given[a.Key]; ok {
		p.globals.set(a.Key, v)
		info.value = v
		return info, nil
	}
	if a.Value == nil {
		info.value, _ = p.globals.Get(a.Key)
		return info, nil
	}
	v, err := p.expand(*a.Value, p.globals)
	if err != nil {
		return info, err
	}
	info.value, info.deps = v.Text, v.Matched
	if _, again := info.deps[a.Key]; again { // FOO=${FOO}x is made of what the earlier FOO was made of
		delete(info.deps, a.Key)
		maps.Copy(info.deps, p.mainArg[a.Key].deps)
	}
	p.globals.set(a.Key, v.Text)
	return info, nil
}

// checkDefaults lints base names as they are when no build argument is given.
func (p *planner) checkDefaults() {
	if p.lint == nil {
		return
	}
	q := *p
	q.globals = p.predefined(nil)
	for _, c := range p.file.args {
		for _, a := range c.Args {
			if _, err := q.mainArgument(a, nil); err != nil {
				return // the build fails of this too, or gives the argument
			}
		}
	}
	for _, inst := range p.file.stages {
		v, err := q.expand(inst.BaseName, q.globals)
		if err != nil {
			return
		}
		if !isOCI(v.Text) {
			lint.InvalidDefaultArgInFrom(p.lint.With(inst.Comments), spans(p.req.Source, inst.Location), inst.BaseName, v.Text)
		}
	}
}

// arg declares variables of a stage. A build argument goes before the default, and that before the main scope.
func (st *step) arg(c *instructions.ArgCommand) error {
	var shown []string
	for _, a := range c.Args {
		lint.SecretsUsedInArgOrEnv(st.lint, st.at, "ARG", a.Key)
		inherited := false
		if v, ok := st.p.given[a.Key]; ok {
			a.Value = &v
		} else if a.Value != nil {
			v, err := st.p.expand(*a.Value, st.env)
			st.reportUnset(v.Unmatched)
			if err != nil {
				return err
			}
			a.Value = &v.Text
		} else if v, ok := st.p.globals.Get(a.Key); ok {
			a.Value, inherited = &v, true
		}
		info := argInfo{def: a, at: st.at}
		text := a.Key
		if a.Value != nil {
			info.value = *a.Value
			text += "=" + *a.Value
			if !sbomArg(a.Key) {
				st.env.set(a.Key, *a.Value)
			}
		}
		if !inherited {
			st.outline.args[a.Key] = info
		}
		st.outline.used[a.Key] = true
		st.args = append(st.args, a)
		shown = append(shown, text)
	}
	st.commit(false, "ARG %s", strings.Join(shown, " "))
	return nil
}

// fromVars are the variables that COPY --from can use: those of the main scope and the ARGs above it. The values of
// ENV are not known before the stages are, and those depend on the values of --from.
type fromVars struct {
	p *planner
	e *env
}

func (p *planner) fromVars() *fromVars { return &fromVars{p, p.globals.clone()} }

func (f *fromVars) declare(c *instructions.ArgCommand) {
	for _, a := range c.Args {
		if v, ok := f.p.given[a.Key]; ok {
			f.e.set(a.Key, v)
		} else if a.Value != nil {
			if v, err := f.p.expand(*a.Value, f.e); err == nil {
				f.e.set(a.Key, v.Text)
			}
		}
	}
}

func (f *fromVars) expand(word string) (string, error) {
	v, err := f.p.expand(word, f.e)
	if err != nil {
		return "", err
	}
	for name := range v.Unmatched {
		e := invalidf("undefined variable \"$%s\" in --from", name)
		if m := didYouMean(e, name, f.e.Keys()); m.Hint != "" {
			return "", m
		}
		return "", e.WithHint("--from can use ARGs: those above the first FROM and those above the instruction; other " +
			"variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
	}
	if v.Text == "" {
		return "", invalidf("--from=%s is empty", word)
	}
	return v.Text, nil
}
