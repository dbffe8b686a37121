package dockerfile

import (
	"bytes"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/dockerfile/lint"
)

// file is a Dockerfile as it was read. The instructions are changed by variable expansion, so every platform reads its own.
type file struct {
	src    *diag.Source
	escape rune
	args   []*instructions.ArgCommand // those above the first FROM
	stages []*instructions.Stage
}

// maxInstructions bounds a file, and the ONBUILD triggers of an image. Each may be a step of a chain as long.
const maxInstructions = 10_000

// maxLines bounds what the parser, which takes microseconds for each line, is given.
const maxLines = 200_000

func tooMany(n int) *diag.Error {
	return diag.Errorf(diag.Exhausted, "there are %d instructions; at most %d are allowed", n, maxInstructions).
		WithHint("join commands in one RUN, or let a script do what the instructions do")
}

// parse reads a Dockerfile, and reports what can be told from the text alone to l.
func parse(src *diag.Source, l *lint.Linter) (*file, error) {
	if src == nil || len(bytes.TrimSpace(src.Data)) == 0 {
		return nil, invalidf("the Dockerfile cannot be empty")
	}
	if n := bytes.Count(src.Data, []byte{'\n'}); n > maxLines {
		return nil, diag.Errorf(diag.Exhausted, "the Dockerfile has %d lines; at most %d are allowed", n, maxLines)
	}
	res, err := parser.Parse(bytes.NewReader(src.Data))
	if err != nil {
		return nil, atDirective(src, err)
	}
	for _, w := range res.Warnings {
		if w.Location != nil {
			lint.NoEmptyContinuation(l, spans(src, []parser.Range{*w.Location}))
		}
	}
	if n := len(res.AST.Children); n > maxInstructions {
		return nil, tooMany(n).WithSpan(src.Lines(res.AST.Children[maxInstructions].StartLine, res.AST.Children[maxInstructions].EndLine))
	}
	f := &file{src: src, escape: res.EscapeToken}
	for _, n := range res.AST.Children {
		if err := f.add(n, l.With(n.PrevComment)); err != nil {
			return nil, &GrammarError{Line: n.StartLine, Err: located(src, err, n.Location())}
		}
	}
	if len(f.stages) == 0 {
		return nil, invalidf("dockerfile contains no stages to build: there is no FROM").WithSpan(src.Lines(1, 1))
	}
	f.lint(l)
	return f, nil
}

func (f *file) add(n *parser.Node, l *lint.Linter) error {
	lintFrom(l, n, spans(f.src, n.Location()))
	parsed, err := parseInstruction(n)
	if err != nil {
		return err
	}
	lintNode(l, n, spans(f.src, n.Location()))
	switch c := parsed.(type) {
	case *instructions.Stage:
		f.stages = append(f.stages, c)
	case *instructions.ArgCommand:
		if len(f.stages) == 0 {
			f.args = append(f.args, c)
			return nil
		}
		f.stages[len(f.stages)-1].AddCommand(c)
	case instructions.Command:
		if len(f.stages) == 0 {
			return invalidf("no build stage in current context: %s must come after a FROM", n.Value)
		}
		f.stages[len(f.stages)-1].AddCommand(c)
	}
	return nil
}

// parseInstruction reads an instruction: first those that the grammar does not know (see own.go), from n.Original. Such an
// instruction is a type with the methods of instructions.Command; what it does is a case of step.dispatch, and the
// stages that it reads are one of linkCommand.
func parseInstruction(n *parser.Node) (any, error) {
	if c, err := parseOwn(n); c != nil || err != nil {
		return c, err
	}
	// The parser asks a linter, even one that is told nothing, for the comments of every instruction.
	return instructions.ParseInstructionWithLinter(n, linter.New(&linter.Config{}))
}

// lintFrom looks at the words of a FROM, which may be too many.
func lintFrom(l *lint.Linter, n *parser.Node, at []diag.Span) {
	if !strings.EqualFold(n.Value, "from") {
		return
	}
	var args []string
	for a := n.Next; a != nil; a = a.Next {
		args = append(args, a.Value)
	}
	if len(args) == 3 {
		lint.StageNameCasing(l, at, args[2])
	}
	if len(args) >= 3 {
		lint.FromAsCasing(l, at, n.Value, args[1])
	}
}

// lintNode runs the rules on what one instruction says by itself.
func lintNode(l *lint.Linter, n *parser.Node, at []diag.Span) {
	var args []string
	for a := n.Next; a != nil; a = a.Next {
		args = append(args, a.Value)
	}
	switch strings.ToLower(n.Value) {
	case "maintainer":
		lint.MaintainerDeprecated(l, at)
	case "from":
		if len(args) == 3 {
			lint.InvalidDefinitionDescription(l, at, "FROM", []string{strings.ToLower(args[2])}, n.PrevComment)
		}
	case "arg":
		for i, a := range args {
			args[i], _, _ = strings.Cut(a, "=")
		}
		lint.InvalidDefinitionDescription(l, at, "ARG", args, n.PrevComment)
	}
}

// lint runs the rules on the file as a whole.
func (f *file) lint(l *lint.Linter) {
	var words []lint.Word
	names := map[string]bool{}
	for _, s := range f.stages {
		at := spans(f.src, s.Location)
		words = append(words, lint.Word{Text: s.OrigCmd, At: at, Comments: s.Comments})
		for _, c := range s.Commands {
			words = append(words, lint.Word{Text: c.Name(), At: spans(f.src, c.Location()), Comments: c.Comments()})
		}
		if s.Name != "" {
			lint.ReservedStageName(l.With(s.Comments), at, s.Name)
			lint.DuplicateStageName(l.With(s.Comments), at, s.Name, names)
			names[s.Name] = true
		}
	}
	lint.ConsistentInstructionCasing(l, words)
}

// declared is the names of all ARGs of the file, those of triggers too.
func (f *file) declared() []string {
	var names []string
	add := func(c *instructions.ArgCommand) {
		for _, a := range c.Args {
			names = append(names, a.Key)
		}
	}
	for _, c := range f.args {
		add(c)
	}
	for _, s := range f.stages {
		for _, c := range s.Commands {
			switch c := c.(type) {
			case *instructions.ArgCommand:
				add(c)
			case *instructions.OnbuildCommand:
				if len(c.Expression) > 4 && strings.EqualFold(c.Expression[:4], "ARG ") {
					for _, w := range strings.Fields(c.Expression[4:]) {
						k, _, _ := strings.Cut(w, "=")
						names = append(names, k)
					}
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
