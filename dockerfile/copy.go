package dockerfile

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
)

// copying is a COPY or an ADD.
type copying struct {
	instructions.SourcesAndDest
	verb     string // "COPY" or "ADD"
	text     string // as it was written
	from     func() (graph.Edge, error)
	context  bool // from is the build context, or part of it
	chown    string
	chmod    string
	link     bool
	parents  bool
	exclude  []string
	checksum string
	keepGit  *bool
	unpack   *bool
}

func (st *step) copy(c *instructions.CopyCommand) error {
	cp := copying{
		SourcesAndDest: c.SourcesAndDest, verb: "COPY", text: strings.Replace(c.String(), "="+st.c.rawFrom, "="+c.From, 1), from: st.p.main, context: true,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns,
	}
	if len(st.c.sources) > 0 {
		src := st.c.sources[0]
		if !src.done {
			return invalidf("cannot copy from stage %q, it needs to be defined before current stage %q", src.title(), st.stage.title())
		}
		cp.from, cp.context = func() (graph.Edge, error) { return src.root, nil }, false
	}
	return st.copyFiles(&cp)
}

func (st *step) add(c *instructions.AddCommand) error {
	cp := copying{
		SourcesAndDest: c.SourcesAndDest, verb: "ADD", text: c.String(), from: st.p.main, context: true,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, exclude: c.ExcludePatterns,
		checksum: c.Checksum, keepGit: c.KeepGitDir, unpack: c.Unpack,
	}
	if c.Checksum != "" {
		if len(c.SourcePaths) != 1 || len(c.SourceContents) > 0 {
			return invalidf("checksum can't be specified for multiple sources")
		}
		_, isGit, _ := ParseGit(c.SourcePaths[0], false)
		if !isGit && !isHTTP(c.SourcePaths[0]) {
			return invalidf("checksum requires HTTP(S) or Git sources")
		}
	}
	return st.copyFiles(&cp)
}

// copyFiles makes one vertex of all sources. A linked copy is made on nothing and stacked on the stage, so that it can
// be kept when the base changes.
func (st *step) copyFiles(cp *copying) error {
	dest, err := absPath(st.cwd(), cp.DestPath, st.platform.OS, true)
	if err != nil {
		return err
	}
	root, isLayer := &st.root, true
	if rel, ok := st.inOutput(dest); ok {
		root, dest, isLayer = &st.out.tree, rel, false
	}
	base := *root
	if cp.link {
		base = graph.Edge{}
	}
	f := newFileOp(base)
	if !isLayer {
		users := f.input(st.root)
		f.users = &users
	}
	if cp.link && byName(f.owner(cp.chown)) {
		return invalidf("--chown=%s: user and group names can't be resolved when used with --link", cp.chown).
			WithHint("use numeric uid[:gid] instead")
	}
	proto := graph.Copy{Dest: dest, Exclude: cp.exclude, CreateDest: true}
	if err := setMode(&proto, cp.chmod); err != nil {
		return err
	}
	name := st.describe(st.p.lex, cp.text, st.env)
	title := st.title(name)
	for _, src := range cp.SourcePaths {
		if err := st.copyOne(f, cp, proto, src); err != nil {
			return err
		}
	}
	for _, doc := range cp.SourceContents {
		c := proto
		c.Src, c.Owner = path.Join("/", doc.Path), f.owner(cp.chown)
		f.do(graph.Action{From: f.input(inlineDocument(c.Src, 0o644, doc.Data)), Copy: &c})
	}
	opts := []graph.Option{graph.Named("%s", title), graph.From(st.at...), graph.Advise(cp.advice())}
	if st.noCache {
		opts = append(opts, graph.NoCache)
	}
	made := f.edge(opts...)
	if cp.link && !root.IsScratch() {
		made = st.stack(*root, made, name)
	}
	*root = made
	st.commit(isLayer, "%s # buildkit", cp.historyRow())
	return nil
}

// advice is what people get wrong who name a file that is not there.
func (cp *copying) advice() string {
	for _, src := range cp.SourcePaths {
		if clean := path.Clean(src); cp.context && (clean == ".." || strings.HasPrefix(clean, "../")) {
			return fmt.Sprintf("%q is outside the build context: give its directory with --build-context NAME=DIR and use --from=NAME", src)
		}
	}
	return ""
}

// stack puts a linked copy on the stage. The two vertices are one step for people.
func (st *step) stack(root, top graph.Edge, name string) graph.Edge {
	top.V.Group = top.V.Name
	st.index--
	v := graph.New(&graph.Merge{}, []graph.Edge{root, top}, graph.Named("%s", st.title("LINK "+name)), graph.From(st.at...))
	v.Group = top.V.Name
	return edge(v)
}

func (st *step) copyOne(f *fileOp, cp *copying, c graph.Copy, src string) error {
	c.Owner = f.owner(cp.chown)
	r, err := remoteSource(src, cp.checksum, cp.keepGit)
	if err != nil {
		return err
	}
	if r != nil {
		git, isGit := r.op.(*graph.Git)
		if isGit {
			if git.Advice, err = st.p.req.gitAdvice(); err != nil {
				return err
			}
		}
		if cp.verb == "COPY" {
			what := "a URL"
			if isGit {
				what = "a git ref"
			}
			return invalidf("source can't be %s for COPY: %s", what, src).WithHint("use ADD")
		}
		c.Src = r.path
		c.Unpack = !isGit && cp.unpack != nil && *cp.unpack
		v := graph.New(r.op, nil, graph.Named("[internal] load %s", src), graph.From(st.at...))
		f.do(graph.Action{From: f.input(edge(v)), Copy: &c})
		return nil
	}
	if cp.context {
		lint.CopyIgnoredFile(st.lint, st.at, st.p.ignore, cp.verb[:1]+strings.ToLower(cp.verb[1:]), src)
	}
	os := st.platform.OS
	if cp.parents {
		if src, err = keepParents(&c, src, os); err != nil {
			return err
		}
	}
	if c.Src, err = absPath("/", src, os, false); err != nil {
		return err
	}
	c.FollowSymlink, c.DirContents, c.Wildcard, c.AllowEmpty = true, true, true, true
	c.Unpack = cp.verb == "ADD"
	if cp.unpack != nil {
		c.Unpack = *cp.unpack
	}
	from, err := cp.from()
	if err != nil {
		return err
	}
	f.do(graph.Action{From: f.input(from), Copy: &c})
	return nil
}

// keepParents is --parents: the source becomes a pattern below the root, or below what stands before "/./". A path
// without wildcards must be there.
func keepParents(c *graph.Copy, src, os string) (string, error) {
	root, pattern, ok := strings.Cut(src, "/./")
	if !ok {
		root, pattern = "/", src
	}
	pattern, err := absPath("/", pattern, os, false)
	if err != nil {
		return "", err
	}
	if pattern == "/" { // all that is in the root
		return root, nil
	}
	c.Include = []string{strings.TrimPrefix(pattern, "/")}
	if !graph.HasWildcard(root) && !graph.HasWildcard(pattern) {
		c.Required = c.Include
	}
	return root, nil
}

// symbolicMode is the grammar of chmod(1): "u+rwx,go=rX".
var symbolicMode = regexp.MustCompile(`^[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*$`)

func setMode(c *graph.Copy, chmod string) error {
	if chmod == "" {
		return nil
	}
	n, err := strconv.ParseUint(chmod, 8, 32)
	switch {
	case err == nil && n <= 0o7777:
		m := uint32(n)
		c.Mode = &m
	case err != nil && symbolicMode.MatchString(chmod):
		c.ModeStr = chmod
	default:
		return invalidf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777", chmod).
			WithHint("write a mode as 644 or 0755, or as for chmod(1): u=rwX,go=rX")
	}
	return nil
}

func (cp *copying) historyRow() string {
	b := cp.verb
	if cp.parents {
		b += " --parents"
	}
	if cp.chown != "" {
		b += " --chown=" + cp.chown
	}
	if cp.chmod != "" {
		b += " --chmod=" + cp.chmod
	}
	for _, s := range cp.SourcePaths {
		b += " " + s
	}
	for _, d := range cp.SourceContents {
		b += " <<" + d.Path
	}
	return b + " " + cp.DestPath
}

// urlFilename is the name that a downloaded file gets.
func urlFilename(src string) string {
	if u, err := url.Parse(src); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return base
		}
	}
	return "__unnamed__"
}
