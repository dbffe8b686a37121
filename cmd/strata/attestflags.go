package main

import (
	"encoding/csv"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/provenance"
)

func (b *buildFlags) attestFlags(fs *pflag.FlagSet) {
	fs.Var(&parsed{kind: "list", set: b.attest}, "attest", "Attach a statement to the image: type=provenance or type=sbom, with attributes")
	for kind, usage := range map[string]string{
		"provenance": "Attach what the image was made from: the same as --attest type=provenance",
		"sbom":       "Attach a list of what is in the image: the same as --attest type=sbom",
	} {
		fs.Var(&parsed{kind: "attributes", set: func(s string) error {
			if on, err := strconv.ParseBool(s); err == nil {
				s = "disabled=" + strconv.FormatBool(!on)
			}
			return b.attest("type=" + kind + "," + s)
		}}, kind, usage)
		fs.Lookup(kind).NoOptDefVal = "true"
	}
}

// attest reads "type=provenance[,mode=min|max]…" or "type=sbom[,generator=IMAGE]…"; the last one of a type counts.
func (b *buildFlags) attest(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return invalid("%q: %s", s, err)
	}
	a := map[string]string{}
	for _, f := range fields {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		if k != "" {
			a[k] = v
		}
	}
	kind := a["type"]
	off := false
	if v, ok := a["disabled"]; ok {
		if off, err = strconv.ParseBool(v); err != nil && v != "" {
			return invalid("disabled=%s is neither true nor false", v)
		}
		off = off || v == ""
	}
	delete(a, "type")
	delete(a, "disabled")
	switch kind {
	case "provenance":
		b.req.Provenance = nil
		if off {
			return nil
		}
		known := []string{"mode", "version", "builder-id", "reproducible", "inline-only", "filename", "complete-materials"}
		for _, k := range slices.Sorted(maps.Keys(a)) {
			if !slices.Contains(known, k) {
				return suggest(invalid("unknown attribute %s of provenance", k), k, known)
			}
		}
		o, err := provenance.ParseOptions(a)
		if err == nil {
			b.req.Provenance = &o
		}
		return err
	case "sbom":
		b.req.SBOM = nil
		if !off {
			b.req.SBOM = &engine.SBOM{Generator: a["generator"]}
			delete(a, "generator")
			b.req.SBOM.Params = a
		}
		return nil
	case "":
		return invalid("%q has no type", s).WithHint("write --attest type=provenance or --attest type=sbom")
	}
	return suggest(invalid("no such attestation: %s: it must be provenance or sbom", kind), kind, []string{"provenance", "sbom"})
}
