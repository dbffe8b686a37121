package export

import (
	"context"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/strictjson"
	"github.com/strata-build/strata/tree"
)

// statementType is that of the in-toto attestation framework v1.
const statementType = "https://in-toto.io/Statement/v1"

// spdxType and provenanceTypes are predicates that get special care.
const (
	spdxType        = "https://spdx.dev/Document"
	provenanceTypes = "https://slsa.dev/provenance/"
)

// maxStatement bounds one attestation in bytes.
const maxStatement = 80 << 20

// statementLimits bound a statement, of which the largest are bills of materials with an entry for each file.
var statementLimits = strictjson.Limits{Bytes: maxStatement, Values: 1_000_000}

type statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// stated is a statement as a document.
type stated struct {
	name          string // of its file
	predicateType string
	raw           []byte
}

// claim is one predicate with what it is about.
type claim struct {
	image.Attestation
	predicate []byte
}

// about is what statements are about.
type about struct {
	self    []subject
	layers  []image.Descriptor                    // of an image, bottom first
	layerOf func(string) (image.Descriptor, bool) // which layer has a file; nil if nobody knows
}

// wanted returns the attestations for an exporter: one of files takes none that are for images only.
func wanted(all []Attestation, inline bool) []Attestation {
	if inline {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(a Attestation) bool { return a.InlineOnly })
}

// statements makes the documents of attestations about self. Those of the image's own bill of materials come first.
func statements(ctx context.Context, all []Attestation, about about) ([]stated, error) {
	claims := make([][]claim, len(all))
	g, gctx := errgroup.WithContext(ctx)
	for i := range all {
		g.Go(func() (err error) {
			claims[i], err = all[i].claims(gctx, about.layers)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	list := slices.Concat(claims...)
	slices.SortStableFunc(list, func(a, b claim) int { return rank(a) - rank(b) })
	var out []stated
	for _, c := range list {
		if c.core() && about.layerOf != nil {
			c.predicate = noteLayers(c.predicate, about.layerOf)
		}
		predicate := json.RawMessage(c.predicate)
		if len(predicate) == 0 {
			predicate = nil
		}
		raw, err := json.MarshalIndent(statement{statementType, c.PredicateType, c.subjects(about.self), predicate}, "", "  ")
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "the attestation %s: %w", c.Path, err)
		}
		out = append(out, stated{path.Base(c.Path), c.PredicateType, raw})
	}
	return out, nil
}

func rank(c claim) int {
	if c.core() {
		return 0
	}
	return 1
}

// core reports whether it is the bill of materials of the image's own files.
func (c *claim) core() bool {
	n, _, _ := strings.Cut(path.Base(c.Path), ".")
	return c.Core != "" && n == c.Core && c.PredicateType == spdxType
}

func (c *claim) subjects(self []subject) []subject {
	asked := c.Subjects
	if len(asked) == 0 {
		asked = []image.Subject{{Self: true}}
	}
	out := []subject{}
	for _, s := range asked {
		if !s.Self {
			out = append(out, subject{named(s.Name), s.Digests})
			continue
		}
		for _, x := range self {
			out = append(out, x)
			if s.Name != "" && s.Name != "_" {
				out = append(out, subject{s.Name, x.Digest})
			}
		}
	}
	return out
}

func named(s string) string {
	if s == "" {
		return "_"
	}
	return s
}

// claims reads an attestation. Provenance is this program's word: what a step wrote may not pass for it.
func (a *Attestation) claims(ctx context.Context, layers []image.Descriptor) ([]claim, error) {
	if a.Make != nil {
		p, err := a.Make(ctx, layers)
		return []claim{{a.Attestation, p}}, err
	}
	t, ok := a.Tree.(interface{ Files() (*tree.Files, error) })
	if !ok {
		return nil, diag.Errorf(diag.Invalid, "no ref provided for attestation %s", a.Path)
	}
	files, err := t.Files()
	if err != nil {
		return nil, err
	}
	if a.Bundle {
		return a.bundle(ctx, files)
	}
	switch {
	case strings.HasPrefix(a.PredicateType, provenanceTypes):
		return nil, diag.Errorf(diag.Denied, "frontend may not set provenance attestations")
	case a.Path == "":
		return nil, diag.Errorf(diag.Invalid, "attestation does not have set path")
	}
	data, err := files.ReadFile(ctx, a.Path, maxStatement)
	if err != nil {
		return nil, diag.Errorf(diag.KindOf(err), "cannot read in-toto attestation: %w", err)
	}
	return []claim{{a.Attestation, data}}, nil
}

// bundle reads the statements of a directory.
func (a *Attestation) bundle(ctx context.Context, files *tree.Files) ([]claim, error) {
	dir := path.Join("/", a.Path)
	kids, err := files.ReadDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	var out []claim
	for _, k := range kids {
		name := path.Join(a.Path, k.Name)
		data, err := files.ReadFile(ctx, path.Join(dir, k.Name), maxStatement)
		if err != nil {
			return nil, err
		}
		var s statement
		if err := statementLimits.Unmarshal(data, &s); err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s: cannot decode in-toto statement: %w", name, err)
		}
		switch {
		case strings.HasPrefix(s.PredicateType, provenanceTypes):
			return nil, diag.Errorf(diag.Denied, "frontend may not bundle provenance attestations")
		case a.PredicateType != "" && s.PredicateType != a.PredicateType:
			return nil, diag.Errorf(diag.Invalid, "bundle entry %s does not match required predicate type %s", s.PredicateType, a.PredicateType)
		}
		c := claim{a.Attestation, s.Predicate}
		c.PredicateType, c.Path, c.Subjects = s.PredicateType, name, nil
		for _, x := range s.Subject {
			c.Subjects = append(c.Subjects, image.Subject{Name: x.Name, Digests: x.Digest})
		}
		out = append(out, c)
	}
	return out, nil
}

// digestSet is a digest as statements have it.
func digestSet(d graph.Digest) map[string]string {
	return map[string]string{d.Algorithm().String(): d.Encoded()}
}
