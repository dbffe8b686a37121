package dockerfile

import (
	"context"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

const epochArg = "SOURCE_DATE_EPOCH"

// setEpoch reads SOURCE_DATE_EPOCH: seconds, "context", a named context, or a stage that is nothing but one remote ADD.
// The variable's value becomes the seconds.
func (p *planner) setEpoch(ctx context.Context) error {
	v, given := p.given[epochArg]
	if !given {
		v, _ = p.globals.Get(epochArg)
	}
	if v == "" {
		return nil
	}
	t, err := p.findEpoch(ctx, v)
	if err != nil {
		return err
	}
	p.epoch = t
	delete(p.given, epochArg)
	_, declared := p.globals.Get(epochArg)
	p.globals.unset(epochArg)
	if t == nil {
		return nil
	}
	sec := strconv.FormatInt(t.Unix(), 10)
	if given {
		p.given[epochArg] = sec
	}
	if declared {
		p.globals.set(epochArg, sec)
	}
	return nil
}

func (p *planner) findEpoch(ctx context.Context, v string) (*time.Time, error) {
	if sec, err := strconv.ParseInt(v, 10, 64); err == nil {
		t := time.Unix(sec, 0).UTC()
		return &t, nil
	}
	var e graph.Edge
	var err error
	if v == "context" {
		e, err = p.main()
	} else {
		e, err = p.epochSource(ctx, v)
	}
	if err != nil {
		return nil, err
	}
	src := onlySource(e)
	if src == nil {
		return nil, nil
	}
	t, err := p.r.Time(ctx, edge(src))
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "%s=%s: %w", epochArg, v, err)
	}
	if t.IsZero() {
		return nil, nil
	}
	t = t.UTC()
	return &t, nil
}

// onlySource is the git or http source that a tree is made of, nil if it is made of others or of several. A client's directory
// has no time of its own.
func onlySource(e graph.Edge) *graph.Vertex {
	var sources []*graph.Vertex
	graph.Walk([]graph.Edge{e}, func(v *graph.Vertex) {
		if len(v.In) == 0 {
			sources = append(sources, v)
		}
	})
	if len(sources) != 1 {
		return nil
	}
	switch sources[0].Op.(type) {
	case *graph.Git, *graph.HTTP:
		return sources[0]
	}
	return nil
}

func (p *planner) epochSource(ctx context.Context, v string) (graph.Edge, error) {
	bad := invalidf("invalid %s: %s", epochArg, v).WithHint("give seconds since 1970, \"context\", a named context, or a stage with a single remote ADD")
	if nc, err := p.namedContext(v, nil); err == nil && nc != nil {
		f, err := nc.load(ctx, p.target)
		return f.edge, err
	}
	var names []string
	for _, inst := range p.file.stages {
		if inst.Name != "" && strings.EqualFold(inst.Name, v) {
			e, err := p.epochStage(inst)
			return e, located(p.req.Source, err, inst.Location)
		}
		names = append(names, inst.Name)
	}
	return graph.Edge{}, didYouMean(bad, v, names)
}

// epochStage is the remote source of a stage that has nothing else.
func (p *planner) epochStage(inst *instructions.Stage) (graph.Edge, error) {
	var e graph.Edge
	e0 := p.globals.clone()
	e0.unset(epochArg)
	if base, err := p.expand(inst.BaseName, e0); err != nil || base.Text != scratch {
		return e, invalidf("%s stage must use FROM scratch", epochArg)
	}
	vars := &fromVars{p, e0}
	for _, ic := range inst.Commands {
		switch c := ic.(type) {
		case *instructions.ArgCommand:
			vars.declare(c)
		case *instructions.AddCommand:
			if e.V != nil || len(c.SourceContents) > 0 || len(c.SourcePaths) != 1 {
				return e, invalidf("%s stage must contain exactly one remote ADD", epochArg)
			}
			src, err := p.expand(c.SourcePaths[0], e0)
			if err != nil {
				return e, err
			}
			sum, err := p.expand(c.Checksum, e0)
			if err != nil {
				return e, err
			}
			r, err := remoteSource(src.Text, sum.Text, c.KeepGitDir)
			if err != nil {
				return e, err
			}
			if r == nil {
				return e, invalidf("%s stage source must be a single HTTP(S) or git ADD", epochArg)
			}
			if git, ok := r.op.(*graph.Git); ok {
				if git.Advice, err = p.req.gitAdvice(); err != nil {
					return e, err
				}
			}
			e = edge(graph.New(r.op, nil, graph.Named("[internal] resolve %s source stage %s", epochArg, inst.Name)))
		default:
			return e, invalidf("%s stage does not meet source-only requirements: unsupported %s instruction", epochArg, ic.Name()).
				WithHint("it can have ARG and one ADD of a URL only")
		}
	}
	if e.V == nil {
		return e, invalidf("%s stage must contain exactly one remote ADD", epochArg)
	}
	return e, nil
}

// remote is a source of ADD that is not in the context.
type remote struct {
	op   graph.Op
	path string // of the file in the source's tree; "/" = all of it
}

// remoteSource makes the source of an ADD from git or http(s); nil if src is neither.
func remoteSource(src, checksum string, keepGit *bool) (*remote, error) {
	git, ok, err := ParseGit(src, false)
	if err != nil {
		return nil, err
	}
	if ok {
		if keepGit != nil {
			if git.KeepDir && !*keepGit {
				return nil, invalidf("inconsistent keep-git-dir configuration: the URL and the flag differ")
			}
			git.KeepDir = *keepGit
		}
		if checksum != "" && git.Checksum != "" && checksum != git.Checksum {
			return nil, invalidf("checksum mismatch %q != %q", checksum, git.Checksum)
		}
		if checksum != "" {
			git.Checksum = checksum
		}
		return &remote{git, "/"}, nil
	}
	if !isHTTP(src) {
		return nil, nil
	}
	op := &graph.HTTP{URL: src, Filename: urlFilename(src), Checksum: graph.Digest(checksum)}
	if checksum != "" {
		if err := op.Checksum.Validate(); err != nil {
			return nil, invalidf("invalid checksum %q: %w", checksum, err).WithHint("write it as sha256: and 64 hex digits")
		}
	}
	return &remote{op, path.Join("/", op.Filename)}, nil
}
