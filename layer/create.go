package layer

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/diag"
)

// CreateOptions say how a plain directory becomes a layer. With the zero value every entry belongs to root and keeps its
// mode; times are the business of TarOptions.Epoch.
type CreateOptions struct {
	Prefix     string   // where the directory's content goes in the image: "opt/app"; "" is the root
	Owner      Owner    // of everything
	KeepOwner  bool     // owners as in the directory, instead
	Exclude    []string // patterns of paths below the directory: "*.o", "cache", "**/.git"; what is below them goes too
	Rules      []Rule   // applied in order, so that the last one wins
	UserXattrs bool     // take user.* attributes along
}

// Rule changes the metadata of the entries whose path below the directory matches a pattern. A nil field changes nothing.
type Rule struct {
	Pattern  string
	Exclude  bool
	UID, GID *uint32
	Mode     *uint32    // permission bits, 07777
	ModTime  *time.Time // not clamped further down than the epoch
}

// ParseRules reads a metadata file: a line for each rule, with a pattern and what it sets, # begins a comment.
//
//	# pattern        what
//	**               uid=0 gid=0
//	var/lib/app/**   uid=1000 gid=1000 mode=0640
//	bin/*            mode=0755
//	secrets          exclude
//
// Patterns: * and ? match within a name, ** any number of directories. A pattern without a slash matches one name at the
// top only. Errors name the line.
func ParseRules(name string, text []byte) ([]Rule, error) {
	var out []Rule
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		r, err := parseRule(fields)
		if err != nil {
			return nil, diag.Errorf(diag.Invalid, "%s:%d: %w", name, n, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRule(fields []string) (Rule, error) {
	r := Rule{Pattern: fields[0]}
	switch {
	case strings.HasPrefix(r.Pattern, "!"):
		return r, diag.Errorf(diag.Invalid, "%s: a pattern cannot be negated", r.Pattern).WithHint("name what is to change; later rules win over earlier ones")
	case len(fields) == 1:
		return r, diag.Errorf(diag.Invalid, "%s: the rule does nothing", r.Pattern).WithHint("add uid=N, gid=N, mode=0755, mtime=N or exclude")
	}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		base, bits := 10, 32
		switch key {
		case "mode":
			base, bits = 8, 12
		case "mtime":
			bits = 40
		case "exclude":
			r.Exclude = true
			continue
		case "uid", "gid":
		default:
			return r, diag.Errorf(diag.Invalid, "unknown word %q", f).WithHint("uid=, gid=, mode=, mtime= and exclude are known")
		}
		v, err := strconv.ParseUint(value, base, bits)
		if err != nil {
			return r, diag.Errorf(diag.Invalid, "%s: not a number", f)
		}
		n := uint32(v)
		switch key {
		case "uid":
			r.UID = &n
		case "gid":
			r.GID = &n
		case "mode":
			r.Mode = &n
		case "mtime":
			t := time.Unix(int64(v), 0)
			r.ModTime = &t
		}
	}
	return r, nil
}

// pattern compiles a pattern of Rule. It matches the path itself, or with below also everything below it.
func pattern(s string, below bool) (*regexp.Regexp, error) {
	var b strings.Builder
	b.WriteString("^")
	s = strings.Trim(filepath.ToSlash(s), "/")
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], "**/"):
			b.WriteString("(.*/)?")
			i += 2
		case strings.HasPrefix(s[i:], "**"):
			b.WriteString(".*")
			i++
		case s[i] == '*':
			b.WriteString("[^/]*")
		case s[i] == '?':
			b.WriteString("[^/]")
		default:
			b.WriteString(regexp.QuoteMeta(s[i : i+1]))
		}
	}
	if below {
		b.WriteString("(/.*)?")
	}
	b.WriteString("$")
	re, err := regexp.Compile(b.String())
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "invalid pattern %q: %w", s, err)
	}
	return re, nil
}

// FromPath lists a plain directory, or a single file, as the entries of a layer. Parents that the prefix implies are
// root's, with mode 0755. The same content gives the same entries on any machine, whoever asks. Close it when the last
// content has been read.
//
//	d, err := layer.FromPath("dist", layer.CreateOptions{Prefix: "opt/app", Exclude: []string{"**/*.map"}})
//	defer d.Close()
//	v, err := layer.NewVirtual(ctx, d.Entries, layer.TarOptions{Epoch: &epoch}, nil)
func FromPath(path string, opt CreateOptions) (*Source, error) {
	c, err := newCreation(opt)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, diag.Errorf(diag.NotFound, "cannot read the layer's content: %w", err)
	}
	out := &Source{}
	if !st.IsDir() {
		if !st.Mode().IsRegular() {
			return nil, diag.Errorf(diag.Invalid, "%s is neither a directory nor a regular file", path)
		}
		err = c.add(&Entry{
			Path: filepath.Base(path), Type: File, Mode: uint32(st.Mode().Perm()), Size: st.Size(), ModTime: st.ModTime(),
			Open: func() (io.ReadCloser, error) { return os.Open(path) },
		})
		out.Entries = c.out
		return out, err
	}
	w, err := NewWalker(path, opt.UserXattrs)
	if err != nil {
		return nil, err
	}
	out.walker = w
	for e, err := range w.Entries() {
		if err == nil {
			err = c.add(e)
		}
		if err != nil {
			return nil, joinClose(err, w)
		}
	}
	out.Entries, out.Skipped = c.out, w.Skipped
	return out, nil
}

func joinClose(err error, c io.Closer) error {
	_ = c.Close() // the first error matters
	return err
}

// Source is a directory that was listed.
type Source struct {
	Entries []*Entry
	Skipped int64 // sockets that were left out
	walker  *Walker
}

// Close closes the directory.
func (s *Source) Close() error {
	if s.walker == nil {
		return nil
	}
	return s.walker.Close()
}

// creation applies options to entries.
type creation struct {
	opt     CreateOptions
	exclude []*regexp.Regexp
	rules   []*regexp.Regexp
	out     []*Entry
	gone    map[string]*Entry // excluded files, which later names may stand for
	moved   map[string]string // first names that took the place of excluded ones
}

func newCreation(opt CreateOptions) (*creation, error) {
	c := &creation{opt: opt, gone: map[string]*Entry{}, moved: map[string]string{}}
	for _, p := range opt.Exclude {
		re, err := pattern(p, true)
		if err != nil {
			return nil, err
		}
		c.exclude = append(c.exclude, re)
	}
	for _, r := range opt.Rules {
		re, err := pattern(r.Pattern, r.Exclude)
		if err != nil {
			return nil, err
		}
		c.rules = append(c.rules, re)
	}
	prefix, err := cleanName(opt.Prefix)
	if err != nil {
		return nil, err
	}
	c.opt.Prefix = prefix
	for i := range prefix {
		if prefix[i] == '/' {
			c.out = append(c.out, implied(prefix[:i]))
		}
	}
	if prefix != "." {
		c.out = append(c.out, implied(prefix))
	}
	return c, nil
}

func (c *creation) add(listed *Entry) error {
	own := *listed // the walker goes on with its own
	e := &own
	for _, re := range c.exclude {
		if re.MatchString(e.Path) {
			return c.leaveOut(e)
		}
	}
	if e.Type == HardLink {
		if to, ok := c.moved[e.Link]; ok {
			e.Link = to
		} else if first := c.gone[e.Link]; first != nil { // this name becomes the file
			c.moved[e.Link] = e.Path
			f := *first
			f.Path = e.Path
			e = &f
		}
	}
	marker := strings.HasPrefix(e.Path[strings.LastIndexByte(e.Path, '/')+1:], whiteoutPrefix)
	if !marker && !c.opt.KeepOwner {
		e.UID, e.GID = c.opt.Owner.UID, c.opt.Owner.GID
	}
	for i, r := range c.opt.Rules {
		if marker || !c.rules[i].MatchString(e.Path) {
			continue
		}
		if r.Exclude {
			return c.leaveOut(e)
		}
		r.apply(e)
	}
	e.Path = join(c.opt.Prefix, e.Path)
	if e.Type == HardLink {
		e.Link = join(c.opt.Prefix, e.Link)
	}
	c.out = append(c.out, e)
	return nil
}

func (c *creation) leaveOut(e *Entry) error {
	if e.Type == File {
		c.gone[e.Path] = e
	}
	return nil
}

func (r *Rule) apply(e *Entry) {
	if r.UID != nil {
		e.UID = *r.UID
	}
	if r.GID != nil {
		e.GID = *r.GID
	}
	if r.Mode != nil && e.Type != Symlink {
		e.Mode = *r.Mode
	}
	if r.ModTime != nil {
		e.ModTime = *r.ModTime
	}
}
