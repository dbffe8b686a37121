package dockerfile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/graph"
)

// Arguments that say what a bill of materials lists besides the image: the build context, and stages. Each is true, or a list of
// stages' names.
const (
	scanContext = "BUILDKIT_SBOM_SCAN_CONTEXT"
	scanStage   = "BUILDKIT_SBOM_SCAN_STAGE"
)

// sbomArg reports whether an argument steers attestations, and is no variable of a step.
func sbomArg(k string) bool { return k == scanContext || k == scanStage }

// scans returns the trees that a bill of materials of the target lists besides the target itself.
func (p *planner) scans(target *stage) (map[string]graph.Edge, error) {
	var out map[string]graph.Edge
	add := func(name string, e graph.Edge) {
		if out == nil {
			out = map[string]graph.Edge{}
		}
		out[name] = e
	}
	if target.scanned(scanContext) {
		e, err := p.main()
		if err != nil {
			return nil, err
		}
		add("context", e)
	}
	for s := range p.reachable(target) {
		if s != target && !s.external && s.scanned(scanStage) {
			add(s.label(), s.root)
		}
	}
	return out, nil
}

// scanned reports whether an argument, of the file or of the stage and its bases, is meant for the stage.
func (s *stage) scanned(arg string) bool {
	v, _ := s.p.globals.Get(arg)
	for b := s; b != nil; b = b.base {
		i := len(b.args) - 1
		for i >= 0 && (b.args[i].Key != arg || b.args[i].Value == nil) {
			i--
		}
		if i >= 0 {
			v = *b.args[i].Value
			break
		}
	}
	if on, err := strconv.ParseBool(v); err == nil {
		return on
	}
	return slices.Contains(strings.Split(v, ","), s.label())
}

// label is the stage's name, or its index.
func (s *stage) label() string {
	if s.inst.Name != "" {
		return s.inst.Name
	}
	return strconv.Itoa(slices.Index(s.p.stages, s))
}
