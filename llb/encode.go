package llb

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// Encode writes a graph as a definition whose last op names the roots. What only Strata has is diag.Unsupported. Scratch has
// no form as one of several roots; alone it is a definition without ops.
func Encode(roots ...graph.Edge) (*pb.Definition, error) {
	def, _, err := (&encoder{}).encode(roots)
	return def, err
}

// EncodeNamed is Encode for people: without logins. It tells the digest by which the definition names each vertex.
func EncodeNamed(roots ...graph.Edge) (*pb.Definition, map[*graph.Vertex]graph.Digest, error) {
	return (&encoder{people: true}).encode(roots)
}

func (e *encoder) encode(roots []graph.Edge) (*pb.Definition, map[*graph.Vertex]graph.Digest, error) {
	if len(roots) == 0 {
		return nil, nil, diag.Errorf(diag.Invalid, "a build definition needs a result")
	}
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	if len(roots) == 1 && roots[0].IsScratch() {
		return def, nil, nil
	}
	e.def, e.done = def, map[*graph.Vertex]graph.Digest{}
	var err error
	graph.Walk(roots, func(v *graph.Vertex) {
		if err == nil {
			err = e.vertex(v)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	last := &pb.Op{}
	for _, r := range roots {
		if r.IsScratch() {
			return nil, nil, diag.Errorf(diag.Unsupported, "LLB cannot name scratch among several results")
		}
		last.Inputs = append(last.Inputs, e.input(r))
	}
	if _, err := e.add(last, &pb.OpMetadata{}); err != nil {
		return nil, nil, err
	}
	if len(e.at.src.Infos) > 0 {
		def.Source = &pb.Source{Locations: e.at.src.Locations, Infos: e.at.src.Infos}
	}
	return def, e.done, nil
}

type encoder struct {
	people bool // the definition is read by people: what may be secret is left out
	def    *pb.Definition
	done   map[*graph.Vertex]graph.Digest
	at     locations
}

func (e *encoder) input(x graph.Edge) *pb.Input {
	return &pb.Input{Digest: string(e.done[x.V]), Index: int64(x.Out)}
}

// add appends an op. Ops that are equal but for their metadata are one.
func (e *encoder) add(op *pb.Op, md *pb.OpMetadata) (graph.Digest, error) {
	raw, err := op.Marshal()
	if err != nil {
		return "", diag.Errorf(diag.Invalid, "the build definition cannot be encoded: %w", err)
	}
	dgst := digest.FromBytes(raw)
	if e.def.Metadata[string(dgst)] == nil {
		e.def.Def = append(e.def.Def, raw)
		e.def.Metadata[string(dgst)] = md
	}
	return dgst, nil
}

// inputs numbers the trees of an op: scratch is an input of a vertex, but not of an op.
type inputs struct {
	at    []int // the op's number of each of the vertex's inputs, or -1
	count int
}

// of translates the number of a tree, which may be the result of an action.
func (n *inputs) of(i int) (int64, error) {
	switch {
	case i == graph.None:
		return int64(pb.Empty), nil
	case i < 0:
		return 0, diag.Errorf(diag.Invalid, "a step of tree %d", i)
	case i < len(n.at):
		return int64(n.at[i]), nil
	}
	return int64(i - len(n.at) + n.count), nil
}

func (e *encoder) vertex(v *graph.Vertex) error {
	op := &pb.Op{Platform: encodePlatform(v.Platform)}
	at := &inputs{at: make([]int, len(v.In))}
	for i, in := range v.In {
		at.at[i] = int(pb.Empty)
		if !in.IsScratch() {
			at.at[i] = at.count
			at.count++
			op.Inputs = append(op.Inputs, e.input(in))
		}
	}
	md := &pb.OpMetadata{IgnoreCache: v.NoCache, Description: maps.Clone(v.Labels)}
	o := v.Op
	if e.people {
		o = public(o)
	}
	if err := encodeOp(op, md, o, at); err != nil {
		return diag.At(err, v.At...)
	}
	if v.Name != "" && v.Name != v.Op.Kind() && v.Name != opName(v.Op, v.In) {
		if md.Description == nil {
			md.Description = map[string]string{}
		}
		md.Description[nameKey] = v.Name
	}
	if v.Group != "" {
		md.ProgressGroup = &pb.ProgressGroup{Id: v.Group, Name: v.Label, Weak: v.Weak}
	}
	if v.Export != nil {
		md.ExportCache = &pb.ExportCache{Value: *v.Export}
	}
	if len(v.Workers) > 0 {
		op.Constraints = &pb.WorkerConstraints{Filter: v.Workers}
	}
	if e.people {
		for k, text := range md.Description {
			md.Description[k] = diag.Redact(text)
		}
	}
	dgst, err := e.add(op, md)
	if err != nil {
		return err
	}
	e.done[v] = dgst
	e.at.add(dgst, v.At)
	return nil
}

func encodeOp(op *pb.Op, md *pb.OpMetadata, o graph.Op, at *inputs) (err error) {
	switch o := o.(type) {
	case *graph.Exec:
		var x *pb.ExecOp
		x, md.LinuxResources, err = encodeExec(o, at)
		op.Op = &pb.Op_Exec{Exec: x}
	case *graph.File:
		var f *pb.FileOp
		f, err = encodeFile(o, at)
		op.Op = &pb.Op_File{File: f}
	case *graph.Merge:
		m := &pb.MergeOp{}
		for i := range op.Inputs {
			m.Inputs = append(m.Inputs, &pb.MergeInput{Input: int64(i)})
		}
		op.Op = &pb.Op_Merge{Merge: m}
	case *graph.Diff:
		if len(at.at) != 2 {
			return diag.Errorf(diag.Invalid, "a diff has two inputs, not %d", len(at.at))
		}
		op.Op = &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: int64(at.at[0])}, Upper: &pb.UpperDiffInput{Input: int64(at.at[1])}}}
	case *graph.Build:
		if at.count != 1 {
			return diag.Errorf(diag.Unsupported, "a nested build has one input, not %d", at.count)
		}
		b := &pb.BuildOp{Builder: int64(pb.LLBBuilder), Inputs: map[string]*pb.BuildInput{pb.LLBDefinitionInput: {Input: 0}}, Attrs: map[string]string{}}
		maps.Copy(b.Attrs, o.Attrs)
		if o.File != "" {
			b.Attrs[pb.AttrLLBDefinitionFilename] = o.File
		}
		op.Op = &pb.Op_Build{Build: b}
	case *graph.Passthrough:
		p := &pb.PassthroughOp{Id: o.ID}
		for _, i := range o.Outs {
			n, err := at.of(i)
			if err != nil || n < 0 || i >= len(at.at) {
				return diag.Errorf(diag.Unsupported, "a passthrough of tree %d", i)
			}
			p.Outputs = append(p.Outputs, n)
		}
		op.Op = &pb.Op_Passthrough{Passthrough: p}
	default:
		var s pb.SourceOp
		s.Identifier, s.Attrs, err = encodeSource(o)
		op.Op = &pb.Op_Source{Source: &s}
	}
	return err
}

func encodePlatform(p graph.Platform) *pb.Platform {
	if p.OS == "" && p.Architecture == "" && p.Variant == "" && p.OSVersion == "" && len(p.OSFeatures) == 0 {
		return nil
	}
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: slices.Clone(p.OSFeatures)}
}

// setter collects attributes that are not at their zero value.
type setter map[string]string

func (s setter) text(key, v string) {
	if v != "" {
		s[key] = v
	}
}

func (s setter) flag(key string, v bool) {
	if v {
		s[key] = "true"
	}
}

func (s setter) number(key string, n int) {
	if n != 0 {
		s[key] = strconv.Itoa(n)
	}
}

func (s setter) list(key string, v []string) {
	if v != nil {
		b, _ := json.Marshal(v) // strings always have a JSON form
		s[key] = string(b)
	}
}

// EncodeSource writes one source. Its identifier is in the one form that policies know.
func EncodeSource(o graph.Op) (*pb.SourceOp, error) {
	id, attrs, err := encodeSource(o)
	return &pb.SourceOp{Identifier: id, Attrs: attrs}, err
}

// public returns the op as everybody may see it.
func public(o graph.Op) graph.Op {
	switch o := o.(type) {
	case *graph.HTTP:
		c := *o
		c.Login, c.URL = nil, diag.Redact(o.URL)
		return &c
	case *graph.Git:
		c := *o
		c.Login = nil
		return &c
	case *graph.Exec:
		c := *o
		c.Args, c.Env = redactAll(o.Args), redactAll(o.Env)
		return &c
	}
	return o
}

func redactAll(list []string) []string {
	out := slices.Clone(list)
	for i, s := range out {
		out[i] = diag.Redact(s)
	}
	return out
}

// withLogin is an address with the login in it, as clients write it.
func withLogin(address string, login *url.Userinfo) string {
	u, err := url.Parse(address)
	if login == nil || err != nil {
		return address
	}
	u.User = login
	return u.String()
}

// encodeSource writes the identifier and the attributes of a source.
func encodeSource(o graph.Op) (id string, attrs map[string]string, err error) {
	s := setter{}
	switch o := o.(type) {
	case *graph.Image:
		s.text(pb.AttrImageResolveMode, string(o.Mode))
		s.number(pb.AttrImageLayerLimit, o.LayerLimit)
		s.text(pb.AttrImageChecksum, o.Checksum.String())
		s.text(pb.AttrImageRecordType, o.Record)
		return schemeImage + "://" + o.Ref, s, nil
	case *graph.OCILayout:
		s.text(pb.AttrOCILayoutStoreID, o.Store)
		s.text(pb.AttrOCILayoutSessionID, o.Session)
		s.number(pb.AttrOCILayoutLayerLimit, o.LayerLimit)
		return schemeOCI + "://" + o.Ref, s, nil
	case *graph.Blob:
		s.text(pb.AttrHTTPFilename, o.Filename)
		s.perm(o.Mode)
		s.number(pb.AttrHTTPUID, o.UID)
		s.number(pb.AttrHTTPGID, o.GID)
		s.text(pb.AttrImageRecordType, o.Record)
		s.text(pb.AttrOCILayoutStoreID, o.Store)
		s.text(pb.AttrOCILayoutSessionID, o.Session)
		if o.Layout {
			return schemeOCIBlob + "://" + o.Ref, s, nil
		}
		return schemeImageBlob + "://" + o.Ref, s, nil
	case *graph.Git:
		return encodeGit(o, s)
	case *graph.HTTP:
		return encodeHTTP(o, s)
	case *graph.Local:
		s.list(pb.AttrIncludePatterns, o.Include)
		s.list(pb.AttrExcludePatterns, o.Exclude)
		s.list(pb.AttrFollowPaths, o.Follow)
		s.text(pb.AttrSharedKeyHint, o.SharedKey)
		s.text(pb.AttrLocalSessionID, o.Session)
		s.text(pb.AttrLocalUniqueID, o.Unique)
		if o.Reread {
			s[pb.AttrLocalDiffer] = pb.AttrLocalDifferNone
		}
		s.flag(pb.AttrMetadataTransfer, o.Metadata)
		s.list(pb.AttrMetadataTransferExclude, o.MetaExcl)
		return schemeLocal + "://" + o.Name, s, nil
	}
	return "", nil, diag.Errorf(diag.Unsupported, "LLB has no form of %s", o.Kind())
}

func (s setter) perm(mode uint32) {
	if mode != 0 {
		s[pb.AttrHTTPPerm] = fmt.Sprintf("%#o", mode)
	}
}

func encodeHTTP(o *graph.HTTP, s setter) (string, map[string]string, error) {
	if o.ModTime != nil {
		return "", nil, diag.Errorf(diag.Unsupported, "LLB cannot say the time of a download")
	}
	s.text(pb.AttrHTTPChecksum, o.Checksum.String())
	s.text(pb.AttrHTTPFilename, o.Filename)
	s.perm(o.Mode)
	s.number(pb.AttrHTTPUID, o.UID)
	s.number(pb.AttrHTTPGID, o.GID)
	s.text(pb.AttrHTTPAuthHeaderSecret, o.AuthHeader)
	for k, v := range o.Header {
		s[pb.AttrHTTPHeaderPrefix+strings.ToLower(k)] = v
	}
	if o.Signature != nil {
		s.text(pb.AttrHTTPSignatureVerifyPubKey, o.Signature.PubKey)
		s.text(pb.AttrHTTPSignatureVerify, o.Signature.Signature)
	}
	return withLogin(o.URL, o.Login), s, nil
}

func encodeGit(o *graph.Git, s setter) (string, map[string]string, error) {
	id := o.Remote
	if r, err := parseRemote(o.Remote); err == nil {
		id = r.host + (&url.URL{Path: path.Join("/", r.path)}).EscapedPath()
	}
	if o.Ref != "" || o.Subdir != "" {
		f := o.Ref
		if o.Subdir != "" {
			f += ":" + o.Subdir
		}
		id += "#" + (&url.URL{Fragment: f}).EscapedFragment()
	}
	s.text(pb.AttrFullRemoteURL, withLogin(o.Remote, o.Login))
	s.text(pb.AttrGitChecksum, o.Checksum)
	s.flag(pb.AttrKeepGitDir, o.KeepDir)
	s.flag(pb.AttrGitSkipSubmodules, o.SkipSubmodules)
	s.flag(pb.AttrGitFetchByCommit, o.FetchByCommit)
	if o.MTimeCommit {
		s[pb.AttrGitMTime] = "commit"
	}
	s.flag(pb.AttrGitCheckoutBundle, o.Bundle)
	s.text(pb.AttrGitBundle, o.BundleFrom)
	if v := o.Signature; v != nil {
		s.text(pb.AttrGitSignatureVerifyPubKey, v.PubKey)
		s.flag(pb.AttrGitSignatureVerifyRejectExpired, v.RejectExpired)
		s.flag(pb.AttrGitSignatureVerifyRequireSignedTag, v.RequireSigned)
		s.flag(pb.AttrGitSignatureVerifyIgnoreSignedTag, v.IgnoreSignedTag)
	}
	s.text(pb.AttrAuthTokenSecret, o.AuthToken)
	s.text(pb.AttrAuthHeaderSecret, o.AuthHeader)
	s.text(pb.AttrMountSSHSock, o.SSH)
	s.text(pb.AttrKnownSSHHosts, o.KnownHosts)
	s.flag(pb.AttrGitAdvice, o.Advice)
	s.text(pb.AttrOCILayoutStoreID, o.Store)
	s.text(pb.AttrOCILayoutSessionID, o.Session)
	return schemeGit + "://" + id, s, nil
}
