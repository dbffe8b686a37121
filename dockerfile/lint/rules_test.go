package lint

import (
	"slices"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/patternmatcher"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// ruleTest is a rule on something that it reports, with BuildKit's rule and its text, and on something that it does not.
type ruleTest struct {
	rule      *Rule
	peer      linter.LinterRuleI
	says      string
	bad, good []func(l *Linter)
}

type check = func(l *Linter)

func set(names ...string) map[string]struct{} {
	out := map[string]struct{}{}
	for _, n := range names {
		out[n] = struct{}{}
	}
	return out
}

func ignoring(t *testing.T, patterns ...string) *patternmatcher.PatternMatcher {
	t.Helper()
	m, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// keywords are those of instructions, as they were written.
func keywords(texts ...string) []Word {
	var out []Word
	for _, s := range texts {
		out = append(out, Word{Text: s})
	}
	return out
}

func namesOfStages() []ruleTest {
	return []ruleTest{
		{
			&stageNameCasing, &linter.RuleStageNameCasing, linter.RuleStageNameCasing.Format("Build"),
			[]check{func(l *Linter) { StageNameCasing(l, nil, "Build") }},
			[]check{func(l *Linter) { StageNameCasing(l, nil, "build-1") }},
		},
		{
			&duplicateStageName, &linter.RuleDuplicateStageName, linter.RuleDuplicateStageName.Format("b"),
			[]check{func(l *Linter) { DuplicateStageName(l, nil, "b", map[string]bool{"a": true, "b": true}) }},
			[]check{func(l *Linter) { DuplicateStageName(l, nil, "b", map[string]bool{"a": true}) }},
		},
		{
			&reservedStageName, &linter.RuleReservedStageName, linter.RuleReservedStageName.Format("scratch"),
			[]check{func(l *Linter) { ReservedStageName(l, nil, "scratch") }},
			[]check{func(l *Linter) { ReservedStageName(l, nil, "scratch2") }},
		},
		{
			&fromAsCasing, &linter.RuleFromAsCasing, linter.RuleFromAsCasing.Format("FROM", "as"),
			[]check{func(l *Linter) { FromAsCasing(l, nil, "FROM", "as") }},
			[]check{
				func(l *Linter) { FromAsCasing(l, nil, "FROM", "AS") },
				func(l *Linter) { FromAsCasing(l, nil, "from", "as") },
				func(l *Linter) { FromAsCasing(l, nil, "From", "as") }, // ConsistentInstructionCasing's
			},
		},
		{
			&invalidDefinitionDescription, &linter.RuleInvalidDefinitionDescription, linter.RuleInvalidDefinitionDescription.Format("ARG", "foo"),
			[]check{func(l *Linter) {
				InvalidDefinitionDescription(l, nil, "ARG", []string{"foo"}, []string{"foo first", "bar is it"})
			}},
			[]check{
				func(l *Linter) { InvalidDefinitionDescription(l, nil, "ARG", []string{"foo"}, []string{"foo is it"}) },
				func(l *Linter) {
					InvalidDefinitionDescription(l, nil, "ARG", []string{"foo", "bar"}, []string{"bar is it"})
				},
				func(l *Linter) { InvalidDefinitionDescription(l, nil, "ARG", []string{"foo"}, nil) },
				func(l *Linter) { InvalidDefinitionDescription(l, nil, "FROM", nil, []string{"a comment"}) },
			},
		},
	}
}

func bases() []ruleTest {
	linux := graph.Platform{OS: "linux", Architecture: "amd64"}
	return []ruleTest{
		{
			&undefinedArgInFrom, &linter.RuleUndefinedArgInFrom, linter.RuleUndefinedArgInFrom.Format("BAS", "BASE"),
			[]check{func(l *Linter) { UndefinedArgInFrom(l, nil, set("BAS"), []string{"OTHER", "BASE"}) }},
			[]check{func(l *Linter) { UndefinedArgInFrom(l, nil, set("BASE"), []string{"OTHER", "BASE"}) }},
		},
		{
			&invalidDefaultArgInFrom, &linter.RuleInvalidDefaultArgInFrom, linter.RuleInvalidDefaultArgInFrom.Format("busybox:${TAG}"),
			[]check{
				func(l *Linter) { InvalidDefaultArgInFrom(l, nil, "busybox:${TAG}", "busybox:") },
				func(l *Linter) { InvalidDefaultArgInFrom(l, nil, "busybox:${TAG}", "") },
			},
			[]check{func(l *Linter) { InvalidDefaultArgInFrom(l, nil, "busybox${TAG}", "busybox") }},
		},
		{
			&fromPlatformFlagConstDisallowed, &linter.RuleFromPlatformFlagConstDisallowed, linter.RuleFromPlatformFlagConstDisallowed.Format("linux/amd64"),
			[]check{func(l *Linter) {
				FromPlatformFlagConstDisallowed(l, nil, Expanded{Text: "linux/amd64"}, linux, "build")
			}},
			[]check{
				func(l *Linter) {
					FromPlatformFlagConstDisallowed(l, nil, Expanded{Text: "linux/amd64"}, linux, "build-amd64")
				},
				func(l *Linter) {
					FromPlatformFlagConstDisallowed(l, nil, Expanded{Text: "linux/amd64", Matched: set("P")}, linux, "build")
				},
				func(l *Linter) {
					FromPlatformFlagConstDisallowed(l, nil, Expanded{Unmatched: set("P")}, linux, "build")
				},
			},
		},
		{
			&redundantTargetPlatform, &linter.RuleRedundantTargetPlatform, linter.RuleRedundantTargetPlatform.Format("$TARGETPLATFORM"),
			[]check{func(l *Linter) {
				RedundantTargetPlatform(l, nil, "$TARGETPLATFORM", Expanded{Matched: set("TARGETPLATFORM")}, true)
			}},
			[]check{
				func(l *Linter) {
					RedundantTargetPlatform(l, nil, "$BUILDPLATFORM", Expanded{Matched: set("BUILDPLATFORM")}, true)
				},
				func(l *Linter) {
					RedundantTargetPlatform(l, nil, "x", Expanded{Matched: set("TARGETPLATFORM", "X")}, true)
				},
				func(l *Linter) { RedundantTargetPlatform(l, nil, "x", Expanded{Matched: set("TARGETPLATFORM")}, false) },
			},
		},
		{
			&invalidBaseImagePlatform, &linter.RuleInvalidBaseImagePlatform, linter.RuleInvalidBaseImagePlatform.Format("b", "linux/amd64", "linux/arm64"),
			[]check{func(l *Linter) { InvalidBaseImagePlatform(l, nil, "b", "linux/amd64", "linux/arm64") }},
			nil, // the caller has found it
		},
	}
}

func instructions(t *testing.T) []ruleTest {
	t.Helper()
	return []ruleTest{
		{
			&consistentInstructionCasing, &linter.RuleConsistentInstructionCasing, linter.RuleConsistentInstructionCasing.Format("run", "uppercase"),
			[]check{
				func(l *Linter) { ConsistentInstructionCasing(l, keywords("FROM", "run", "COPY")) },
				func(l *Linter) { ConsistentInstructionCasing(l, keywords("FROM", "run")) }, // a draw is upper case's
			},
			[]check{
				func(l *Linter) { ConsistentInstructionCasing(l, keywords("FROM", "RUN")) },
				func(l *Linter) { ConsistentInstructionCasing(l, keywords("from", "run")) },
			},
		},
		{
			&noEmptyContinuation, &linter.RuleNoEmptyContinuation, linter.RuleNoEmptyContinuation.Format(),
			[]check{func(l *Linter) { NoEmptyContinuation(l, nil) }},
			nil,
		},
		{
			&jsonArgsRecommended, &linter.RuleJSONArgsRecommended, linter.RuleJSONArgsRecommended.Format("CMD"),
			[]check{func(l *Linter) { JSONArgsRecommended(l, nil, "CMD", false) }},
			[]check{func(l *Linter) { JSONArgsRecommended(l, nil, "CMD", true) }},
		},
		{
			&maintainerDeprecated, &linter.RuleMaintainerDeprecated, linter.RuleMaintainerDeprecated.Format(),
			[]check{func(l *Linter) { MaintainerDeprecated(l, nil) }},
			nil,
		},
		{
			&workdirRelativePath, &linter.RuleWorkdirRelativePath, linter.RuleWorkdirRelativePath.Format("app/"),
			[]check{func(l *Linter) { WorkdirRelativePath(l, nil, "app/") }},
			nil,
		},
		{
			&undefinedVar, &linter.RuleUndefinedVar, linter.RuleUndefinedVar.Format("PAHT", "PATH"),
			[]check{func(l *Linter) { UndefinedVar(l, nil, set("PAHT"), []string{"HOME", "PATH"}) }},
			[]check{func(l *Linter) { UndefinedVar(l, nil, set(), []string{"PATH"}) }},
		},
		{
			&multipleInstructionsDisallowed, &linter.RuleMultipleInstructionsDisallowed, linter.RuleMultipleInstructionsDisallowed.Format("CMD"),
			[]check{func(l *Linter) { MultipleInstructionsDisallowed(l, nil, "CMD") }},
			nil,
		},
		{
			&legacyKeyValueFormat, &linter.RuleLegacyKeyValueFormat, linter.RuleLegacyKeyValueFormat.Format("ENV"),
			[]check{func(l *Linter) { LegacyKeyValueFormat(l, nil, "ENV") }},
			nil,
		},
		{
			&secretsUsedInArgOrEnv, &linter.RuleSecretsUsedInArgOrEnv, linter.RuleSecretsUsedInArgOrEnv.Format("ARG", "NPM_TOKEN"),
			[]check{func(l *Linter) { SecretsUsedInArgOrEnv(l, nil, "ARG", "NPM_TOKEN") }},
			[]check{func(l *Linter) { SecretsUsedInArgOrEnv(l, nil, "ARG", "NPM_TOKEN_FILE") }},
		},
		{
			&copyIgnoredFile, &linter.RuleCopyIgnoredFile, linter.RuleCopyIgnoredFile.Format("Copy", "dist/app"),
			[]check{func(l *Linter) { CopyIgnoredFile(l, nil, ignoring(t, "dist"), "Copy", "dist/app") }},
			[]check{
				func(l *Linter) { CopyIgnoredFile(l, nil, ignoring(t, "dist"), "Copy", "src") },
				func(l *Linter) { CopyIgnoredFile(l, nil, ignoring(t, "dist", "!dist/app"), "Copy", "dist/app") },
				func(l *Linter) { CopyIgnoredFile(l, nil, ignoring(t, "*.md"), "Copy", ".") },
				func(l *Linter) { CopyIgnoredFile(l, nil, nil, "Copy", "dist/app") },
			},
		},
		{
			&exposeProtoCasing, &linter.RuleExposeProtoCasing, linter.RuleExposeProtoCasing.Format("80/TCP"),
			[]check{func(l *Linter) { ExposeProtoCasing(l, nil, "80/TCP", "TCP") }},
			[]check{func(l *Linter) { ExposeProtoCasing(l, nil, "80/tcp", "tcp") }},
		},
		{
			&exposeInvalidFormat, &linter.RuleExposeInvalidFormat, linter.RuleExposeInvalidFormat.Format("127.0.0.1:80:80"),
			[]check{
				func(l *Linter) { ExposeInvalidFormat(l, nil, "127.0.0.1:80:80", "127.0.0.1", "") },
				func(l *Linter) { ExposeInvalidFormat(l, nil, "127.0.0.1:80:80", "", "80") },
			},
			[]check{func(l *Linter) { ExposeInvalidFormat(l, nil, "80", "", "") }},
		},
	}
}

// TestRules compares each rule with BuildKit's: the name, whether it is experimental, and the text. What is right is not reported,
// and a rule that is skipped reports nothing.
func TestRules(t *testing.T) {
	for _, r := range slices.Concat(namesOfStages(), bases(), instructions(t)) {
		t.Run(r.rule.Name, func(t *testing.T) {
			if r.peer.RuleName() != r.rule.Name || r.peer.IsExperimental() != r.rule.Experimental {
				t.Errorf("BuildKit calls it %s, experimental %v", r.peer.RuleName(), r.peer.IsExperimental())
			}
			on := Config{Experimental: []string{r.rule.Name}}
			off := Config{Skip: []string{r.rule.Name}}
			for n, f := range r.bad {
				l := New(on)
				f(l)
				ws := l.Warnings()
				if len(ws) != 1 || ws[0].Msg != r.says || ws[0].Rule != r.rule.Name {
					t.Errorf("bad %d: %+v, want %s", n, ws, r.says)
				}
				skipped := New(off)
				f(skipped)
				if ws := skipped.Warnings(); len(ws) != 0 {
					t.Errorf("bad %d is reported though the rule is skipped: %+v", n, ws)
				}
			}
			for n, f := range r.good {
				l := New(on)
				f(l)
				if ws := l.Warnings(); len(ws) != 0 {
					t.Errorf("good %d: %+v", n, ws)
				}
			}
		})
	}
}

// TestFormsOfMessages compares texts that have several forms with those of BuildKit.
func TestFormsOfMessages(t *testing.T) {
	for want, f := range map[string]check{
		linter.RuleReservedStageName.Format("context"):                     func(l *Linter) { ReservedStageName(l, nil, "context") },
		linter.RuleUndefinedVar.Format("X", ""):                            func(l *Linter) { UndefinedVar(l, nil, set("X"), []string{"PATH"}) },
		linter.RuleUndefinedArgInFrom.Format("X", ""):                      func(l *Linter) { UndefinedArgInFrom(l, nil, set("X"), nil) },
		linter.RuleConsistentInstructionCasing.Format("RUN", "lowercase"):  func(l *Linter) { ConsistentInstructionCasing(l, keywords("from", "RUN", "copy")) },
		linter.RuleCopyIgnoredFile.Format("Add", "."):                      func(l *Linter) { CopyIgnoredFile(l, nil, ignoring(t, "**"), "Add", ".") },
		linter.RuleInvalidDefinitionDescription.Format("ARG", "<arg_key>"): func(l *Linter) { InvalidDefinitionDescription(l, nil, "ARG", []string{"a", "b"}, []string{"c d"}) },
		linter.RuleFromAsCasing.Format("from", "AS"):                       func(l *Linter) { FromAsCasing(l, nil, "from", "AS") },
		linter.RuleMultipleInstructionsDisallowed.Format("HEALTHCHECK"):    func(l *Linter) { MultipleInstructionsDisallowed(l, nil, "HEALTHCHECK") },
	} {
		l := New(Config{ExperimentalAll: true})
		f(l)
		if ws := l.Warnings(); len(ws) != 1 || ws[0].Msg != want {
			t.Errorf("%+v, want %s", ws, want)
		}
	}
}

// TestErr makes one error of all findings, with the names of their rules and their places.
func TestErr(t *testing.T) {
	src := &diag.Source{Name: "Dockerfile", Data: []byte("a\nb\nc\n")}
	l := New(Config{Error: true})
	if err := l.Err(); err != nil {
		t.Errorf("nothing was found: %v", err)
	}
	StageNameCasing(l, []diag.Span{src.Lines(3, 3)}, "B")
	MaintainerDeprecated(l, []diag.Span{src.Lines(1, 1)})
	StageNameCasing(l, []diag.Span{src.Lines(2, 2)}, "A")
	err, ok := l.Err().(*diag.Error)
	if !ok || err.Kind != diag.Invalid || err.Msg != "lint violation found for rules: MaintainerDeprecated, StageNameCasing" || err.Hint == "" {
		t.Fatalf("%+v", err)
	}
	var lines []int
	for _, s := range err.At {
		lines = append(lines, s.First)
	}
	if !slices.Equal(lines, []int{1, 2, 3}) {
		t.Errorf("the places are lines %v", lines)
	}
}

// TestConfigNarrows combines what the file asks for with what the comment above an instruction asks for.
func TestConfigNarrows(t *testing.T) {
	file := Config{Skip: []string{"StageNameCasing"}}
	for comment, want := range map[string]int{
		"":                                1, // MaintainerDeprecated
		"check=skip=MaintainerDeprecated": 0,
		"check=skip=all":                  0,
		"check=experimental=all":          2,
		"CHECK = experimental=InvalidDefinitionDescription": 2,
		"check=experimental=Other":                          1,
	} {
		l := New(file).With([]string{comment})
		StageNameCasing(l, nil, "A")
		MaintainerDeprecated(l, nil)
		InvalidDefinitionDescription(l, nil, "ARG", []string{"a"}, []string{"b"})
		if ws := l.Warnings(); len(ws) != want {
			t.Errorf("%q: %+v, want %d findings", comment, ws, want)
		}
	}
}
