package dockerfile

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strata-build/strata/diag"
)

// own is an instruction that other builders do not have.
type own struct {
	code     string
	name     string
	location []parser.Range
	comments []string
}

// String returns the instruction as it was written.
func (c *own) String() string { return c.code }

// Name implements instructions.Command.
func (c *own) Name() string { return c.name }

// Location implements instructions.Command.
func (c *own) Location() []parser.Range { return c.location }

// Comments implements instructions.Command.
func (c *own) Comments() []string { return c.comments }

// parseOwn reads OUTPUT and SQUASH. It returns nil for every other instruction.
func parseOwn(n *parser.Node) (any, error) {
	name := strings.ToLower(n.Value)
	if name != "output" && name != "squash" {
		return nil, nil
	}
	base := own{code: strings.TrimSpace(n.Original), name: n.Value, location: n.Location(), comments: n.PrevComment}
	flags, err := ownFlags(n)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(n.Original)[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "--") {
		words = words[1:]
	}
	if name == "squash" {
		return parseSquash(base, flags, words)
	}
	return parseOutput(base, flags, words)
}

// ownFlags reads "--name=value" and "--name".
func ownFlags(n *parser.Node) (map[string]string, error) {
	known := flagsOf(n.Value)
	flags := map[string]string{}
	for _, f := range n.Flags {
		name, value, hasValue := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		isBool := name == "all"
		switch _, twice := flags[name]; {
		case !contains(known, name):
			msg := "unknown flag: --" + name
			return nil, withHint(diag.Errorf(diag.Invalid, "%s", msg), hintFor(msg, n.Original))
		case twice:
			return nil, invalidf("duplicate flag specified: --%s", name)
		case isBool && hasValue && value != "true" && value != "false":
			return nil, invalidf("expecting boolean value for flag --%s, not: %s", name, value)
		case !isBool && value == "":
			return nil, invalidf("missing a value on flag: --%s", name)
		case isBool && !hasValue:
			value = "true"
		}
		flags[name] = value
	}
	return flags, nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func withHint(err *diag.Error, hint string) *diag.Error {
	if hint == "" {
		return err
	}
	return err.WithHint("%s", hint)
}
