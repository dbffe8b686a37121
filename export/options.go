package export

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/strictjson"
)

// Output asks for one export, as --output does. Dest is the session's name of the destination, for the types that write
// to the client; "" is the only one.
type Output struct {
	Type  string // image, moby, registry, oci, docker, local, tar, cacheonly
	Attrs map[string]string
	Dest  string
}

// imageOptions are the attributes that every exporter of images takes.
type imageOptions struct {
	Type          string   // of the output
	Names         []string // normalised
	NameFromBuild bool     // name=*: the frontend says
	Compression   layer.Compression
	Chosen        bool // the user named a compression
	Force         bool // convert layers that exist in another compression
	Annotations   []Annotation
	Epoch         *time.Time
	NoEpoch       bool  // source-date-epoch= is empty: not even the build's counts
	Rewrite       bool  // clamp the times of files to the epoch
	OCI           *bool // media types; nil = the exporter's default
	Nondist       bool  // layers that their maker does not let others distribute stay where they are
	Artifact      bool  // write attestations as OCI artifacts
	artifactAsked bool
	Inline        bool // keep attestations even where no index would be needed
	Configs       map[string]*image.Config
}

// attrs reads the attributes of an output. What nobody asked for is an error with the nearest name as a hint.
type attrs struct {
	exporter string
	left     map[string]string
	known    []string
	err      error
}

func newAttrs(o Output) *attrs { return &attrs{exporter: o.Type, left: maps.Clone(o.Attrs)} }

func (a *attrs) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// take removes an attribute.
func (a *attrs) take(key string) (string, bool) {
	a.known = append(a.known, key)
	v, ok := a.left[key]
	delete(a.left, key)
	return v, ok
}

// flag reads a truth value; the bare name means true.
func (a *attrs) flag(key string, def bool) bool {
	v, ok := a.take(key)
	switch {
	case !ok:
		return def
	case v == "":
		return true
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		a.fail(diag.Errorf(diag.Invalid, "output %s: %s=%s is neither true nor false", a.exporter, key, v))
	}
	return b
}

// oneOf reads a word out of a list; the first is the default.
func (a *attrs) oneOf(key string, words ...string) string {
	v, ok := a.take(key)
	if !ok {
		return words[0]
	}
	if !slices.Contains(words, v) {
		a.fail(suggest(diag.Errorf(diag.Invalid, "output %s: %s=%s: it must be one of %s", a.exporter, key, v, strings.Join(words, ", ")), v, words))
	}
	return v
}

// ignored are attributes of BuildKit that mean nothing here, or nothing any more.
var ignored = []string{"dest", "buildinfo", "buildinfo-attrs", "unsafe-internal-store-allow-incomplete", "attestation-prefix"}

// done returns the first error, or one for the first attribute that nobody took.
func (a *attrs) done() error {
	for _, k := range ignored {
		delete(a.left, k)
	}
	for _, k := range slices.Sorted(maps.Keys(a.left)) {
		a.fail(suggest(diag.Errorf(diag.Invalid, "output %s: unknown attribute %s", a.exporter, k), k, a.known))
	}
	return a.err
}

// image reads the attributes of images.
func (a *attrs) image() imageOptions {
	_, artifactAsked := a.left["oci-artifact"]
	o := imageOptions{
		Type: a.exporter, artifactAsked: artifactAsked,
		Force:    a.flag("force-compression", false),
		Rewrite:  a.flag("rewrite-timestamp", false),
		Nondist:  a.flag("prefer-nondist-layers", false),
		Artifact: a.flag("oci-artifact", true),
		Inline:   a.flag("attestation-inline", true),
	}
	o.Epoch, o.NoEpoch = a.epoch()
	if v, ok := a.take("name"); ok && v == "*" {
		o.NameFromBuild = true
	} else if ok {
		var err error
		o.Names, err = normalNames(strings.Split(v, ","))
		a.fail(err)
	}
	if _, ok := a.left["oci-mediatypes"]; ok {
		b := a.flag("oci-mediatypes", true)
		o.OCI = &b
	}
	a.compression(&o)
	a.annotationsAndConfigs(&o)
	if o.OCI != nil && !*o.OCI {
		switch {
		case len(o.Annotations) > 0:
			a.fail(diag.Errorf(diag.Invalid, "output %s: annotations need OCI media types", a.exporter).WithHint("drop oci-mediatypes=false"))
		case o.Compression.Type == layer.EStargz:
			a.fail(diag.Errorf(diag.Invalid, "output %s: this compression needs OCI media types", a.exporter).WithHint("drop oci-mediatypes=false"))
		}
	}
	return o
}

func (a *attrs) compression(o *imageOptions) {
	types := map[string]layer.Type{"gzip": layer.Gzip, "zstd": layer.Zstd, "estargz": layer.EStargz, "uncompressed": layer.Uncompressed}
	_, o.Chosen = a.left["compression"]
	name := a.oneOf("compression", "gzip", "zstd", "estargz", "uncompressed")
	o.Compression.Type = types[name]
	v, ok := a.take("compression-level")
	if !ok {
		return
	}
	highest := 9
	if o.Compression.Type == layer.Zstd {
		highest = 22
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > highest {
		a.fail(diag.Errorf(diag.Invalid, "output %s: compression-level=%s: it must be a number from 0 to %d for %s", a.exporter, v, highest, name))
	}
	if o.Compression.Level = n; n == 0 {
		o.Compression.Level = layer.Stored
	}
	o.Chosen = true
}

func (a *attrs) annotationsAndConfigs(o *imageOptions) {
	for _, k := range slices.Sorted(maps.Keys(a.left)) {
		v := a.left[k]
		if an, ok, err := parseAnnotation(k, v); ok {
			a.fail(err)
			o.Annotations = append(o.Annotations, an)
			delete(a.left, k)
			continue
		}
		rest, ok := strings.CutPrefix(k, "containerimage.config")
		if !ok {
			continue
		}
		delete(a.left, k)
		c := &image.Config{Extra: json.RawMessage(v)}
		if err := strictjson.Unmarshal([]byte(v), c); err != nil {
			a.fail(diag.Errorf(diag.Invalid, "output %s: %s is no image configuration: %w", a.exporter, k, err))
			continue
		}
		if o.Configs == nil {
			o.Configs = map[string]*image.Config{}
		}
		o.Configs[strings.TrimPrefix(rest, "/")] = c
	}
}

// epoch reads SOURCE_DATE_EPOCH of an output. None is wanted at all if it is there and empty.
// Annotate adds the annotations among a frontend's metadata, whose keys are those of outputs; the rest is left alone.
func (s *Set) Annotate(meta map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		an, ok, err := parseAnnotation(k, meta[k])
		if err != nil {
			return err
		}
		if ok {
			s.annotations = append(s.annotations, an)
		}
	}
	return nil
}

func (a *attrs) epoch() (t *time.Time, none bool) {
	v, ok := a.take("source-date-epoch")
	if !ok || v == "" {
		return nil, ok
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		a.fail(diag.Errorf(diag.Invalid, "output %s: source-date-epoch=%s: it must be seconds since 1970", a.exporter, v))
		return nil, false
	}
	u := time.Unix(n, 0).UTC()
	return &u, false
}

// normalNames writes references in full: "app" is docker.io/library/app:latest.
func normalNames(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		n = strings.TrimSpace(n)
		if n == "" {
			continue
		}
		r, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s is no image name: %w", n, err)
		}
		if s := reference.TagNameOnly(r).String(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}
