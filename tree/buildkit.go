package tree

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/graph"
)

// BuildKitSum is the digest that BuildKit's caches know the selected files by: it covers, as tarsum did, what a tar's header
// says of each file but its time, and the content; directories are hashed over their children in the order of names.
// Source: cache/contenthash of BuildKit 0.34.
func (f *Files) BuildKitSum(ctx context.Context, sel graph.Select) (graph.Digest, error) {
	sel.Path = path.Join("/", sel.Path)
	filtered := sel.Wildcard && graph.HasWildcard(sel.Path) || len(sel.Include)+len(sel.Exclude) > 0
	if len(f.roots) == 0 && sel.Path == "/" && !filtered {
		return digest.FromString(""), nil
	}
	sel.Contents = false
	matches, err := f.Pick(ctx, sel, false)
	if err != nil {
		return "", err
	}
	s := &summer{f: f, ctx: ctx, sums: map[*Entry]graph.Digest{}}
	s.g, s.ctx = errgroup.WithContext(ctx)
	s.g.SetLimit(runtime.GOMAXPROCS(0) + 1)
	for i := range matches {
		s.add(&matches[i].Pick, matches[i].Rel)
	}
	if err := s.g.Wait(); err != nil {
		return "", err
	}
	if filtered {
		return s.list(sel, matches), nil
	}
	return s.sum(&matches[0].Pick), nil
}

// summer hashes the files of a selection, several at a time.
type summer struct {
	f    *Files
	ctx  context.Context
	g    *errgroup.Group
	todo []*summed
	sums map[*Entry]graph.Digest // of files, and of directories without what is in them
}

type summed struct {
	e   *Entry
	sum graph.Digest
}

// add hashes a file, or a directory with all that is selected below it.
func (s *summer) add(p *Pick, rel string) {
	var all []*summed
	var walk func(p *Pick, rel string)
	rels := map[*summed]string{}
	walk = func(p *Pick, rel string) {
		x := &summed{e: p.Entry}
		all, rels[x] = append(all, x), rel
		for i := range p.Kids {
			walk(&p.Kids[i], joinRel(rel, p.Kids[i].Name))
		}
	}
	walk(p, rel)
	for part := range slices.Chunk(all, 64) {
		s.g.Go(func() error {
			for _, x := range part {
				if err := s.ctx.Err(); err != nil {
					return err
				}
				var err error
				if x.sum, err = s.f.tarSum(x.e, rels[x]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	s.todo = append(s.todo, all...)
}

func (s *summer) of(e *Entry) graph.Digest {
	if len(s.sums) == 0 {
		for _, x := range s.todo {
			s.sums[x.e] = x.sum
		}
	}
	return s.sums[e]
}

// sum is the digest of a file, or of a directory with what is in it.
func (s *summer) sum(p *Pick) graph.Digest {
	own := s.of(p.Entry)
	if !p.IsDir() {
		return own
	}
	h := sha256.New()
	_, _ = io.WriteString(h, "\x00"+string(own))
	for i := range p.Kids {
		k := &p.Kids[i]
		_, _ = io.WriteString(h, "\x00"+k.Name+string(s.sum(k)))
	}
	return digest.NewDigest(digest.SHA256, h)
}

// list is the digest of a selection with patterns: a flat list of paths.
func (s *summer) list(sel graph.Select, matches []Match) graph.Digest {
	prefix := strings.TrimSuffix(sel.Path, "/")
	if sel.Wildcard && graph.HasWildcard(sel.Path) {
		parts := strings.Split(sel.Path, "/")
		prefix = strings.TrimSuffix(strings.Join(parts[:slices.IndexFunc(parts, graph.HasWildcard)], "/"), "/")
	}
	type row struct {
		path string
		sum  graph.Digest
	}
	var rows []row
	var walk func(p *Pick, at string)
	walk = func(p *Pick, at string) {
		if at != "" { // the root's name ends with a slash, and what such a name has in common is what is in the directory
			rows = append(rows, row{at, s.of(p.Entry)})
		}
		for i := range p.Kids {
			walk(&p.Kids[i], at+"/"+p.Kids[i].Name)
		}
	}
	for i := range matches {
		m := &matches[i]
		if m.IsDir() && len(m.Kids) == 0 && len(sel.Include) > 0 {
			continue
		}
		walk(&m.Pick, strings.TrimSuffix(m.Path, "/"))
	}
	if len(rows) == 1 && path.Base(sel.Path) == path.Base("/"+rows[0].path) {
		return rows[0].sum
	}
	h := sha256.New()
	for _, r := range rows {
		key := strings.ReplaceAll(strings.TrimPrefix(r.path, prefix), "/", "\x00")
		if key == "" {
			key = "\x00"
		}
		_, _ = io.WriteString(h, key+string(r.sum))
	}
	return digest.NewDigest(digest.SHA256, h)
}

// tarTypes are the type flags of tar headers.
var tarTypes = map[uint32]string{unix.S_IFREG: "0", unix.S_IFLNK: "2", unix.S_IFCHR: "3", unix.S_IFBLK: "4", unix.S_IFDIR: "5", unix.S_IFIFO: "6", unix.S_IFSOCK: "0"}

// tarSum hashes one file.
func (f *Files) tarSum(e *Entry, rel string) (graph.Digest, error) {
	if e.dir != nil && rel == "" && !f.overlay {
		return digest.FromString(""), nil // the root of a client's directory is nobody's
	}
	h := sha256.New()
	mode, size, major, minor := e.Mode&0o7777, int64(0), uint32(0), uint32(0)
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		size = e.Size
	case unix.S_IFLNK:
		mode |= 0o777
	case unix.S_IFCHR, unix.S_IFBLK:
		major, minor = unix.Major(e.Rdev), unix.Minor(e.Rdev)
	}
	field := func(name, value string) { _, _ = io.WriteString(h, name+value) }
	num := func(name string, n int64) { field(name, strconv.FormatInt(n, 10)) }
	field("name", "")
	num("mode", int64(mode))
	num("uid", int64(e.UID))
	num("gid", int64(e.GID))
	num("size", size)
	field("typeflag", tarTypes[e.Mode&unix.S_IFMT])
	field("linkname", e.Link)
	field("uname", "")
	field("gname", "")
	num("devmajor", int64(major))
	num("devminor", int64(minor))
	if f.overlay {
		host := f.host(e, rel)
		names := listAttrs(host)
		slices.Sort(names)
		for _, n := range names {
			if n == capabilityKey || !strings.HasPrefix(n, "security.") && !strings.HasPrefix(n, "system.") {
				field(n, string(attr(host, n)))
			}
		}
	} else if err := f.clientFields(e, rel, field); err != nil {
		return "", err
	}
	if e.IsRegular() && size > 0 {
		if err := f.copyTo(h, e, rel); err != nil {
			return "", err
		}
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// clientFields calls field for the attributes of a client's file or directory.
func (f *Files) clientFields(e *Entry, rel string, field func(name, value string)) error {
	var fd int
	switch {
	case e.IsRegular():
		in, err := f.Open(&Match{Rel: rel, Pick: Pick{Entry: e}})
		if err != nil {
			return err
		}
		defer in.Close()
		fd = int(in.Fd())
	case e.dir != nil:
		var err error
		if fd, err = f.open(e.layer, rel, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer unix.Close(fd)
	default:
		return nil
	}
	eachClientAttr(fd, func(name string, value []byte) { field(name, string(value)) })
	return nil
}

func (f *Files) copyTo(h hash.Hash, e *Entry, rel string) error {
	r, err := f.Open(&Match{Rel: rel, Pick: Pick{Entry: e}})
	if err != nil {
		return err
	}
	defer r.Close()
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{r}, buf[:])
	if err == nil && n != e.Size {
		err = changed("/" + rel)
	}
	return err
}
