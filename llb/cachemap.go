package llb

import (
	"bytes"
	"cmp"
	"encoding/json"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/strata-build/strata/graph"
)

// CacheMap is what BuildKit knows a vertex by in its caches. Source: the CacheMap methods of solver/llbsolver/ops, and the
// CacheKey methods of source, in BuildKit 0.34: digests are of JSON, so the types and the order of fields count.
type CacheMap struct {
	Digest graph.Digest // of the op, without its inputs
	// BuildKit is BuildKit's digest of the op where that is ambiguous: it knows an input by the content of several paths, but
	// not which content goes where. Such a digest may be written for BuildKit, and must not be matched. Else it is "".
	BuildKit graph.Digest
	Inputs   []CacheInput // those that are not scratch
}

// CacheInput is how an input takes part in the key.
type CacheInput struct {
	In       int          // index of the vertex's input
	Selector graph.Digest // says what of the input is used, where the input is known by how it was made; "" = all
	// Content names the files by whose content the input may be known, too. Nil: it may not.
	Content []graph.Select
}

// SourcePin is what a source stands for: the digest of an image's manifest or index, a git commit, or else any string.
type SourcePin struct{ Image, Commit, Other string }

// RecordDigest is the digest of a record of a cache: of output out of an op, or of content with out = [ContentOutput].
func RecordDigest(d graph.Digest, out int) graph.Digest {
	return digest.FromString(string(d) + "@" + strconv.Itoa(out))
}

// ContentOutput is the output that the digest of content stands for.
const ContentOutput = -1

// NewCacheMap returns the map of a vertex, nil for a directory of a client, which is known by its content only. Ops that LLB
// has no form of have digests of Strata's own.
func NewCacheMap(v *graph.Vertex, pin SourcePin) (*CacheMap, error) {
	if _, ok := v.Op.(*graph.Local); ok {
		return nil, nil
	}
	m, at, op := &CacheMap{}, &inputs{at: make([]int, len(v.In))}, &pb.Op{}
	for i, in := range v.In {
		at.at[i] = int(pb.Empty)
		if !in.IsScratch() {
			at.at[i] = at.count
			at.count++
			op.Inputs = append(op.Inputs, &pb.Input{})
			m.Inputs = append(m.Inputs, CacheInput{In: i})
		}
	}
	var err error
	if err := encodeOp(op, &pb.OpMetadata{}, v.Op, at); err != nil {
		return m.own(v, pin)
	}
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return m.source(v, pin)
	case *pb.Op_Exec:
		used := m.mounts(o.Exec)
		if m.Digest, err = execDigest(o.Exec, v.Platform); err == nil {
			m.disambiguate(used)
		}
	case *pb.Op_File:
		var used [][]graph.Select
		if m.Digest, used, err = m.file(o.File); err == nil {
			m.disambiguate(used)
		}
	case *pb.Op_Merge:
		m.Digest, err = jsonDigest(struct {
			Type  string
			Merge *pb.MergeOp
		}{"buildkit.merge.v0", o.Merge})
	case *pb.Op_Diff:
		m.Digest, err = jsonDigest(struct {
			Type string
			Diff *pb.DiffOp
		}{"buildkit.diff.v0", o.Diff})
	default:
		return m.own(v, pin)
	}
	return m, err
}

// disambiguate gives the op a digest of Strata's own if it uses several parts of an input: used lists them per input, in the
// order of the op. It covers which part is used where.
func (m *CacheMap) disambiguate(used [][]graph.Select) {
	if !slices.ContainsFunc(used, several) {
		return
	}
	m.BuildKit = m.Digest
	m.Digest = digest.FromBytes(graph.Canonical(struct {
		Type string
		Op   graph.Digest
		Used [][]graph.Select
	}{"strata.parts.v0", m.Digest, used}))
}

// several reports whether selections are not all the same.
func several(used []graph.Select) bool {
	return slices.ContainsFunc(used, func(s graph.Select) bool { return !reflect.DeepEqual(s, used[0]) })
}

func jsonDigest(v any) (graph.Digest, error) {
	b, err := json.Marshal(v)
	return digest.FromBytes(b), err
}

// own is the map of what only Strata has.
func (m *CacheMap) own(v *graph.Vertex, pin SourcePin) (*CacheMap, error) {
	m.Digest = digest.FromBytes(graph.Canonical(struct {
		Type     string
		Op       json.RawMessage
		Platform graph.Platform
		Pin      SourcePin
	}{"strata." + v.Op.Kind() + ".v0", graph.Canonical(v.Op), v.Platform, pin}))
	return m, nil
}

func (m *CacheMap) source(v *graph.Vertex, pin SourcePin) (*CacheMap, error) {
	var key string
	limit := 0
	switch o := v.Op.(type) {
	case *graph.Image:
		limit = o.LayerLimit
	case *graph.OCILayout:
		limit = o.LayerLimit
	case *graph.Git:
		if pin.Commit == "" {
			return m.own(v, pin)
		}
		key = gitKey(o, pin.Commit)
	default:
		return m.own(v, pin)
	}
	if key == "" {
		if pin.Image == "" {
			return m.own(v, pin)
		}
		p := v.Platform
		id := struct {
			Digest     string
			OS         string
			Arch       string
			Variant    string   `json:",omitempty"`
			OSVersion  string   `json:",omitempty"`
			OSFeatures []string `json:",omitempty"`
			Limit      *int     `json:",omitempty"`
		}{pin.Image, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures, nil}
		if limit > 0 {
			id.Limit = &limit
		}
		d, err := jsonDigest(id)
		if err != nil {
			return nil, err
		}
		key = d.String()
	}
	m.Digest = digest.FromString("buildkit.source.v0:" + key)
	return m, nil
}

func gitKey(o *graph.Git, commit string) string {
	key := commit
	if o.KeepDir {
		key += ".git"
		if o.Ref != "" {
			key += "#" + o.Ref
		}
	}
	if o.Subdir != "" {
		key += ":" + o.Subdir
	}
	if o.SkipSubmodules {
		key += "(skip-submodules)"
	}
	if o.MTimeCommit {
		key += "(mtime=commit)"
	}
	if o.Bundle {
		key += "(bundle)"
	}
	return key
}

// mounts says what of the inputs an exec uses, and returns the parts of those that may be known by their content.
func (m *CacheMap) mounts(o *pb.ExecOp) [][]graph.Select {
	used := make([][]string, len(m.Inputs))
	parts := make([][]graph.Select, len(m.Inputs))
	byContent := make([]bool, len(m.Inputs))
	for _, x := range o.Mounts {
		switch x.MountType {
		case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
			continue
		}
		if x.Input < 0 || int(x.Input) >= len(used) {
			continue
		}
		sel := path.Join("/", x.Selector)
		used[x.Input] = append(used[x.Input], sel)
		ok := x.Output == int64(pb.SkipOutput) || x.Readonly || sel == "/"
		switch x.ContentCache {
		case pb.MountContentCache_OFF:
			ok = false
		case pb.MountContentCache_DEFAULT:
			ok = ok && x.Dest != "/"
		}
		byContent[x.Input] = ok
	}
	for i, paths := range used {
		in := &m.Inputs[i]
		if len(paths) > 0 {
			in.Selector = digest.FromString(strings.Join(paths, "\x00"))
		}
		if !byContent[i] {
			continue
		}
		for _, p := range paths {
			parts[i] = append(parts[i], graph.Select{Path: p})
		}
		for _, p := range outermost(paths) {
			if p == "/" {
				in.Content = graph.All().Paths
				break
			}
			in.Content = append(in.Content, graph.Select{Path: p, Follow: true})
		}
	}
	return parts
}

// execDigest is the digest of an exec. What changes nothing, or changed nothing in old versions, is left out.
func execDigest(o *pb.ExecOp, p graph.Platform) (graph.Digest, error) {
	o = o.CloneVT()
	for _, h := range o.Meta.ExtraHosts {
		h.IP = ""
	}
	o.Meta.ProxyEnv = nil
	for _, x := range o.Mounts {
		x.Selector = ""
		if c := x.CacheOpt; c != nil && !standardCache(x) {
			c.ID, c.Sharing = "", 0
		}
	}
	if len(o.Mounts) == 1 {
		if x := o.Mounts[0]; x.Dest == "/" && !x.Readonly && x.MountType == pb.MountType_BIND && x.CacheOpt == nil && x.SSHOpt == nil &&
			x.SecretOpt == nil && x.ResultID == "" {
			o.Mounts = nil
		}
	}
	if p.OS == "" {
		p = graph.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	}
	return jsonDigest(struct {
		Type       string
		Exec       *pb.ExecOp
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", o, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
}

// standardCache reports whether a cache mount is one as a Dockerfile makes by default.
func standardCache(m *pb.Mount) bool {
	_, rest, ok := strings.Cut(m.CacheOpt.ID, "/")
	return m.CacheOpt.Sharing == 0 && (m.CacheOpt.ID == m.Dest || ok && rest == m.Dest)
}

// fileInputs collects what file actions read of the inputs.
type fileInputs struct {
	used    map[int][]graph.Select
	changed map[int]bool // inputs that are not only read
}

func (f *fileInputs) owner(o *pb.ChownOpt) {
	if u, ok := o.GetUser().GetUser().(*pb.UserOpt_ByName); ok {
		f.used[int(u.ByName.Input)] = append(f.used[int(u.ByName.Input)], graph.Select{Path: "/etc/passwd", Follow: true})
	}
	if u, ok := o.GetGroup().GetUser().(*pb.UserOpt_ByName); ok {
		f.used[int(u.ByName.Input)] = append(f.used[int(u.ByName.Input)], graph.Select{Path: "/etc/group", Follow: true})
	}
}

// action returns the JSON of an action.
func (f *fileInputs) action(a *pb.FileAction, inputs int) ([]byte, error) {
	if a.Input >= 0 {
		f.changed[int(a.Input)] = true
	}
	switch x := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		f.owner(x.Mkdir.Owner)
		return json.Marshal(x.Mkdir)
	case *pb.FileAction_Mkfile:
		f.owner(x.Mkfile.Owner)
		return json.Marshal(x.Mkfile)
	case *pb.FileAction_Symlink:
		f.owner(x.Symlink.Owner)
		return json.Marshal(x.Symlink)
	case *pb.FileAction_Rm:
		return json.Marshal(x.Rm)
	case *pb.FileAction_Copy:
		c := x.Copy.CloneVT()
		f.owner(c.Owner)
		if i := int(a.SecondaryInput); i >= 0 && i < inputs {
			f.used[i] = append(f.used[i], graph.Select{
				Path: c.Src, Wildcard: c.AllowWildcard && graph.HasWildcard(c.Src), Follow: c.FollowSymlink,
				Include: c.IncludePatterns, Exclude: c.ExcludePatterns, Required: c.RequiredPaths,
			})
			c.Src = path.Base(c.Src)
		}
		return json.Marshal(c)
	}
	return nil, invalidf("a file action of an unknown kind")
}

// file returns the digest of file actions, and the parts that they read of each input, in their order.
func (m *CacheMap) file(o *pb.FileOp) (graph.Digest, [][]graph.Select, error) {
	f := fileInputs{used: map[int][]graph.Select{}, changed: map[int]bool{}}
	actions := make([][]byte, len(o.Actions))
	indexes := make([][]int, len(o.Actions))
	for i, a := range o.Actions {
		var err error
		if actions[i], err = f.action(a, len(m.Inputs)); err != nil {
			return "", nil, err
		}
		indexes[i] = []int{int(a.Input), int(a.SecondaryInput), int(a.Output)}
	}
	if usualIndexes(indexes) {
		indexes = nil
	}
	parts := make([][]graph.Select, len(m.Inputs))
	for i := range m.Inputs {
		used := f.used[i]
		if len(used) == 0 || f.changed[i] {
			continue
		}
		parts[i] = used
		paths := make([]string, len(used))
		for k, s := range used {
			paths[k] = s.Path
		}
		slices.Sort(paths)
		slices.Reverse(paths)
		m.Inputs[i].Selector = digest.FromString(strings.Join(paths, "\x00"))
		m.Inputs[i].Content = distinct(used)
	}
	d, err := jsonDigest(struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}{"buildkit.file.v0", actions, indexes})
	return d, parts, err
}

// usualIndexes reports whether actions build on each other in the usual way, which old versions did not write down.
func usualIndexes(all [][]int) bool {
	for i, x := range all {
		in, out := 0, 0
		if i > 0 {
			in = len(all) + i - 1
		}
		if i < len(all)-1 {
			out = -1
		}
		if x[0] != in || x[1] != -1 && x[1] != 1 || x[2] != out {
			return false
		}
	}
	return len(all) > 0
}

// distinct leaves out paths that lie below others, and sorts.
func distinct(used []graph.Select) []graph.Select {
	var plain, follow []string
	var out []graph.Select
	for _, s := range used {
		switch {
		case s.Wildcard || len(s.Include)+len(s.Exclude) > 0:
			continue
		case s.Follow:
			follow = append(follow, s.Path)
		default:
			plain = append(plain, s.Path)
		}
	}
	for _, p := range outermost(plain) {
		out = append(out, graph.Select{Path: p})
	}
	for _, p := range outermost(follow) {
		out = append(out, graph.Select{Path: p, Follow: true})
	}
	for _, s := range used {
		if s.Wildcard || len(s.Include)+len(s.Exclude) > 0 {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b graph.Select) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// outermost sorts paths, without repetitions, and without those below another one.
func outermost(paths []string) []string {
	if len(paths) <= 1 {
		return paths
	}
	// What lies below a path follows it directly, if paths are compared with a slash at the end.
	dir := func(p string) string { return strings.TrimSuffix(p, "/") + "/" }
	all := slices.Clone(paths)
	slices.SortFunc(all, func(p, q string) int { return cmp.Or(cmp.Compare(dir(p), dir(q)), cmp.Compare(len(p), len(q))) })
	var out []string
	for _, p := range all {
		if n := len(out); n == 0 || p != out[n-1] && !strings.HasPrefix(p, dir(out[n-1])) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// ContentDigest is the digest that stands for the content of several selections, in their order.
func ContentDigest(sums []graph.Digest) graph.Digest {
	parts := make([][]byte, len(sums))
	for i, s := range sums {
		parts[i] = []byte(s)
	}
	return digest.FromBytes(bytes.Join(parts, []byte{0}))
}
