package llb

import (
	"maps"
	"math"
	"net/textproto"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/strictjson"
)

// The schemes of source identifiers.
const (
	schemeImage     = "docker-image"
	schemeImageBlob = "docker-image+blob"
	schemeOCI       = "oci-layout"
	schemeOCIBlob   = "oci-layout+blob"
	schemeGit       = "git"
	schemeHTTP      = "http"
	schemeHTTPS     = "https"
	schemeLocal     = "local"
)

// attrs are the attributes of a source. The first one that cannot be read is the error; unknown ones mean nothing.
type attrs struct {
	m   map[string]string
	err error
}

func (a *attrs) fail(key, why string) {
	if a.err == nil {
		a.err = invalidf("the source's attribute %s is %q: %s", key, a.m[key], why)
	}
}

func (a *attrs) flag(key string) bool { return a.m[key] == "true" }

// number reads an integer of at least least, in Go's syntax; 0 if it is not there.
func (a *attrs) number(key string, least, most int64) int {
	v, ok := a.m[key]
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(v, 0, 64)
	if err != nil || n < least || n > most {
		a.fail(key, "not a number in range")
		return 0
	}
	return int(n)
}

// layers reads how many layers of an image are wanted: at least one, where it is said.
func (a *attrs) layers(key string) int {
	n, err := strconv.ParseInt(a.m[key], 0, 32)
	if v, ok := a.m[key]; ok && (err != nil || n < 1) && a.err == nil {
		a.err = invalidf("invalid layer limit %q (%s)", v, key)
	}
	return int(n)
}

func (a *attrs) list(key string) (out []string) {
	v, ok := a.m[key]
	if ok && strictjson.Unmarshal([]byte(v), &out) != nil {
		a.fail(key, "not a JSON list of strings")
	}
	return out
}

func (a *attrs) digest(key string) graph.Digest {
	v := a.m[key]
	if v == "" {
		return ""
	}
	d, err := digest.Parse(v)
	if err != nil {
		a.fail(key, "not a digest")
	}
	return d
}

func (a *attrs) choice(key string, of ...string) string {
	v := a.m[key]
	if v == "" {
		return ""
	}
	for _, o := range of {
		if v == o {
			return v
		}
	}
	a.fail(key, "not one of "+strings.Join(of, ", "))
	return ""
}

// DecodeSource reads one source.
func DecodeSource(o *pb.SourceOp) (graph.Op, error) { return decodeSource(o) }

func decodeSource(o *pb.SourceOp) (graph.Op, error) {
	if o == nil {
		return nil, invalidf("a source without content")
	}
	scheme, rest, ok := strings.Cut(o.Identifier, "://")
	if !ok || rest == "" {
		return nil, invalidf("the source %q is not of the form scheme://name", o.Identifier)
	}
	if strings.IndexFunc(rest, unicode.IsControl) >= 0 {
		return nil, invalidf("the source %q has control characters", o.Identifier)
	}
	a := &attrs{m: o.Attrs}
	var out graph.Op
	var err error
	switch scheme {
	case schemeImage:
		out, err = decodeImage(rest, a)
	case schemeOCI:
		out, err = decodeLayout(rest, a)
	case schemeImageBlob, schemeOCIBlob:
		out, err = decodeBlob(rest, a, scheme == schemeOCIBlob)
	case schemeGit:
		out, err = decodeGit(rest, a)
	case schemeHTTP, schemeHTTPS:
		out, err = decodeHTTP(o.Identifier, a)
	case schemeLocal:
		out, err = decodeLocal(rest, a)
	default:
		return nil, invalidf("the source %q is of an unknown kind", o.Identifier).
			WithHint("known are docker-image://, oci-layout://, docker-image+blob://, oci-layout+blob://, git://, http://, https:// and local://")
	}
	if err == nil {
		err = a.err
	}
	return out, err
}

// reference checks that an image's name has a tag or a digest.
func reference(ref string) error {
	name := ref[strings.LastIndexByte(ref, '/')+1:]
	if !strings.ContainsAny(name, ":@") || strings.ContainsAny(ref, " \t") {
		return invalidf("the image %q has neither a tag nor a digest", ref)
	}
	return nil
}

func decodeImage(ref string, a *attrs) (graph.Op, error) {
	out := &graph.Image{
		Ref: ref, Mode: graph.ResolveMode(a.choice(pb.AttrImageResolveMode, pb.AttrImageResolveModeDefault, pb.AttrImageResolveModeForcePull, pb.AttrImageResolveModePreferLocal)),
		LayerLimit: a.layers(pb.AttrImageLayerLimit), Checksum: a.digest(pb.AttrImageChecksum), Record: a.record(),
	}
	if out.Mode == pb.AttrImageResolveModeDefault {
		out.Mode = graph.ResolveDefault
	}
	return out, reference(ref)
}

func (a *attrs) record() string {
	return a.choice(pb.AttrImageRecordType, "regular", "internal", "frontend")
}

func decodeLayout(ref string, a *attrs) (graph.Op, error) {
	return &graph.OCILayout{
		Ref: ref, Store: a.m[pb.AttrOCILayoutStoreID], Session: a.m[pb.AttrOCILayoutSessionID],
		LayerLimit: a.layers(pb.AttrOCILayoutLayerLimit),
	}, reference(ref)
}

func decodeBlob(ref string, a *attrs, layout bool) (graph.Op, error) {
	out := &graph.Blob{
		Ref: ref, Layout: layout, Mode: a.perm(), UID: a.id(pb.AttrHTTPUID), GID: a.id(pb.AttrHTTPGID), Record: a.record(),
	}
	if f, ok := a.m[pb.AttrHTTPFilename]; ok {
		out.Filename = fileName(f)
	}
	_, d, _ := strings.Cut(ref, "@")
	if _, err := digest.Parse(d); err != nil {
		return nil, invalidf("the blob %q has no digest", ref)
	}
	if layout {
		out.Store, out.Session = a.m[pb.AttrOCILayoutStoreID], a.m[pb.AttrOCILayoutSessionID]
		if out.Store == "" {
			return nil, invalidf("the blob %q is in an OCI layout that is not named (%s)", ref, pb.AttrOCILayoutStoreID)
		}
	}
	return out, nil
}

func (a *attrs) perm() uint32 { return uint32(a.number(pb.AttrHTTPPerm, 0, 0o7777)) }

func (a *attrs) id(key string) int { return a.number(key, 0, math.MaxUint32) }

// fileName is the last component of a name, or "download" if that is none.
func fileName(s string) string {
	n := path.Base(strings.TrimSpace(s))
	if n == "." || n == ".." || n == "/" || strings.IndexFunc(n, unicode.IsControl) >= 0 {
		return "download"
	}
	return n
}

func decodeHTTP(url string, a *attrs) (graph.Op, error) {
	out := &graph.HTTP{
		URL: url, Checksum: a.digest(pb.AttrHTTPChecksum), Filename: a.m[pb.AttrHTTPFilename], Mode: a.perm(),
		UID: a.id(pb.AttrHTTPUID), GID: a.id(pb.AttrHTTPGID), AuthHeader: a.m[pb.AttrHTTPAuthHeaderSecret],
	}
	for _, k := range slices.Sorted(maps.Keys(a.m)) {
		v := a.m[k]
		name, ok := strings.CutPrefix(k, pb.AttrHTTPHeaderPrefix)
		if !ok {
			continue
		}
		switch name = textproto.CanonicalMIMEHeaderKey(name); name {
		case "Accept", "User-Agent": // no others may be set, as in BuildKit
			if strings.ContainsAny(v, "\r\n\x00") {
				a.fail(k, "not the value of a header")
			}
			if out.Header == nil {
				out.Header = map[string]string{}
			}
			out.Header[name] = v
		}
	}
	key, sig := a.m[pb.AttrHTTPSignatureVerifyPubKey], a.m[pb.AttrHTTPSignatureVerify]
	if key != "" && sig != "" {
		out.Signature = &graph.HTTPVerify{PubKey: key, Signature: sig}
	} else if key != sig {
		return nil, invalidf("the download of %q has a signature or a key, but not both", url)
	}
	return out, nil
}

func decodeLocal(name string, a *attrs) (graph.Op, error) {
	out := &graph.Local{
		Name: name, Include: a.list(pb.AttrIncludePatterns), Exclude: a.list(pb.AttrExcludePatterns), Follow: a.list(pb.AttrFollowPaths),
		SharedKey: a.m[pb.AttrSharedKeyHint], Session: a.m[pb.AttrLocalSessionID], Unique: a.m[pb.AttrLocalUniqueID],
		MetaExcl: a.list(pb.AttrMetadataTransferExclude),
	}
	if prefix, session, ok := strings.Cut(out.Session, ":"); ok {
		out.Name, out.Session = prefix+"-"+name, session
		if strings.Contains(session, ":") {
			a.fail(pb.AttrLocalSessionID, "not a session's ID")
		}
	}
	switch v := a.m[pb.AttrLocalDiffer]; v {
	case "", pb.AttrLocalDifferMetadata:
	case pb.AttrLocalDifferNone:
		out.Reread = true
	default:
		a.fail(pb.AttrLocalDiffer, "neither none nor metadata")
	}
	if v, ok := a.m[pb.AttrMetadataTransfer]; ok {
		var err error
		if out.Metadata, err = strconv.ParseBool(v); err != nil {
			a.fail(pb.AttrMetadataTransfer, "neither true nor false")
		}
	}
	return out, nil
}
