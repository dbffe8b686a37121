package main

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
)

// parsed is a flag whose values are read where they are set, so that every error names the flag and the value.
type parsed struct {
	kind string // what the help text calls the value
	text string // the last value, and the default
	set  func(string) error
}

func (p *parsed) String() string { return p.text }
func (p *parsed) Type() string   { return p.kind }

func (p *parsed) Set(s string) error {
	if err := p.set(s); err != nil {
		return err
	}
	p.text = s
	return nil
}

// spec names a flag ("memory", or "memory,m" with a short form), and says what the help text calls its value, its default
// and what it is for.
type spec struct{ name, kind, def, usage string }

// parsedFlag adds a flag that a parser reads.
func parsedFlag[T any](fs *pflag.FlagSet, s spec, parse func(string) (T, error), use func(T)) {
	name, short, _ := strings.Cut(s.name, ",")
	fs.VarP(&parsed{kind: s.kind, text: s.def, set: func(s string) error {
		v, err := parse(s)
		if err == nil {
			use(v)
		}
		return err
	}}, name, short, s.usage)
}

// bytesFlag adds a flag for a number of bytes.
func bytesFlag(fs *pflag.FlagSet, name, usage string, to *int64) {
	parsedFlag(fs, spec{name, "bytes", "", usage}, parseBytes, func(n int64) { *to = n })
}

// minMemory is the least memory limit, in bytes: that of Docker. The kernel needs some of it before a program runs.
const minMemory = 6 << 20

// memoryFlag adds the memory limit of a step.
func memoryFlag(fs *pflag.FlagSet, usage string, to *int64) {
	parsedFlag(fs, spec{"memory,m", "bytes", "", usage}, func(s string) (int64, error) {
		n, err := parseBytes(s)
		if err == nil && n > 0 && n < minMemory {
			err = invalid("no program can start with so little memory").WithHint("the least is %d MiB", minMemory>>20)
		}
		return n, err
	}, func(n int64) { *to = n })
}

// pairFlag adds a repeatable NAME=VALUE flag.
func pairFlag(fs *pflag.FlagSet, name, usage string, to map[string]string) {
	fs.Var(&parsed{kind: "list", set: func(s string) error {
		k, v, err := parsePair(s)
		if err == nil {
			to[k] = v
		}
		return err
	}}, name, usage)
}

// labelFlag adds a repeatable NAME[=VALUE] flag. A name alone has the empty value, as docker build has it.
func labelFlag(fs *pflag.FlagSet, usage string, to map[string]string) {
	fs.Var(&parsed{kind: "list", set: func(s string) error {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return invalid("it must be NAME=VALUE or NAME")
		}
		to[k] = v
		return nil
	}}, "label", usage)
}

// badFlag turns pflag's errors into ones with a hint. cmd is the command whose flags were read.
func badFlag(cmd *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := e.GetSpecifiedName()
		shown := "--" + name
		if short := e.GetSpecifiedShortnames(); short != "" {
			return diag.Errorf(diag.Invalid, "unknown flag: -%s", name).WithHint("run '%s --help' for the flags", cmd.CommandPath())
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := diag.Suggest(name, names); near != "" {
			return diag.Errorf(diag.Invalid, "unknown flag: %s", shown).WithHint("did you mean --%s?", near)
		}
		return diag.Errorf(diag.Invalid, "unknown flag: %s", shown).WithHint("run '%s --help' for the flags", cmd.CommandPath())
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		inner := e.Unwrap()
		out := diag.Errorf(diag.Invalid, "--%s %s: %s", e.GetFlag().Name, e.GetValue(), inner)
		if d, ok := errors.AsType[*diag.Error](inner); ok {
			out.Hint = d.Hint
		}
		return out
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		f := e.GetFlag()
		return diag.Errorf(diag.Invalid, "--%s needs a value", f.Name).WithHint("--%s: %s", f.Name, f.Usage)
	}
	return diag.Errorf(diag.Invalid, "%s", err)
}

// unknownCommand is the error for a word that is no command of cmd.
func unknownCommand(cmd *cobra.Command, word string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
			names = append(names, c.Aliases...)
		}
	}
	err := diag.Errorf(diag.Invalid, "unknown command: %s %s", cmd.CommandPath(), word)
	if near := diag.Suggest(word, names); near != "" {
		return err.WithHint("did you mean %s %s?", cmd.CommandPath(), near)
	}
	return err.WithHint("run '%s --help' for the commands", cmd.CommandPath())
}

// args checks the number of arguments; max < 0 is no limit.
func args(least, most int, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		err := diag.Errorf(diag.Invalid, "%s needs %s", cmd.CommandPath(), want)
		if len(args) > 0 {
			err = diag.Errorf(diag.Invalid, "%s needs %s, and got %d: %s", cmd.CommandPath(), want, len(args), strings.Join(args, " "))
		}
		if first, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n"); first != "" && !strings.HasSuffix(first, "\\") {
			return err.WithHint("usage: %s\nexample: %s", useLine(cmd), first)
		}
		return err.WithHint("usage: %s", useLine(cmd))
	}
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// oneOf reads a word out of a list.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if slices.Contains(words, s) {
			return s, nil
		}
		return "", suggest(invalid("it must be one of %s", strings.Join(words, ", ")), s, words)
	}
}
