package relayer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/knqyf263/go-rpmdb/pkg/bdb"
	dbi "github.com/knqyf263/go-rpmdb/pkg/db"
	"github.com/knqyf263/go-rpmdb/pkg/ndb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// rpm finds the source packages of Fedora, SUSE and their relatives, in all three forms of rpm's database. No file is newer
// than the newest package of its source.
type rpm struct{}

func (rpm) Name() string { return "rpm" }

// rpmDirs are where databases are; each may have one of three names, by age.
var rpmDirs = []string{"usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"}

func (rpm) Find(_ context.Context, fs *layer.FS) ([]Component, error) {
	for _, dir := range rpmDirs {
		for _, name := range []string{"rpmdb.sqlite", "Packages.db", "Packages"} {
			p := path.Join(dir, name)
			if e, ok := fs.Lookup(p); !ok || e.Type != layer.File || e.Size == 0 {
				continue
			}
			list, err := rpmPackages(fs, p)
			if err != nil {
				return nil, diag.Errorf(diag.Invalid, "%s: %w", p, err)
			}
			return rpmComponents(list), nil
		}
	}
	return nil, nil
}

// rpmPackages reads the headers of all packages.
func rpmPackages(fs *layer.FS, p string) ([]rpmHeader, error) {
	room := newNameBudget()
	if strings.HasSuffix(p, ".sqlite") {
		data, err := fs.ReadFile(p, maxDatabase)
		if err != nil {
			return nil, err
		}
		var out []rpmHeader
		err = sqliteRows(data, "Packages", func(row [][]byte) error {
			h, err := parseHeader(row[len(row)-1], room)
			out = append(out, h)
			return err
		})
		return out, err
	}
	file, err := extract(fs, p)
	if err != nil {
		return nil, err
	}
	defer os.Remove(file)
	var db interface {
		Read() <-chan dbi.Entry
		Close() error
	}
	if strings.HasSuffix(p, ".db") {
		db, err = ndb.Open(file)
	} else {
		db, err = bdb.Open(file)
	}
	if err != nil {
		return nil, err
	}
	defer db.Close()
	var out []rpmHeader
	for e := range db.Read() {
		if err == nil {
			err = e.Err
		}
		if err != nil {
			continue // the channel must be drained
		}
		var h rpmHeader
		h, err = parseHeader(e.Value, room)
		out = append(out, h)
	}
	return out, err
}

// extract copies a file to a temporary one: the readers of old databases want a path.
func extract(fs *layer.FS, p string) (string, error) {
	e, _ := fs.Lookup(p)
	r, err := e.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	f, err := os.CreateTemp("", "strata-rpmdb-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the first error matters
	}
	return f.Name(), err
}

// rpmHeader is the part of a package's header that counts here.
type rpmHeader struct {
	name, source       string
	built              int64
	files              []string
	provides, requires []string
}

// Tags of a header. Source: rpm's include/rpm/rpmtag.h and docs/manual/format_header.md.
const (
	tagName, tagBuildTime, tagSource                      = 1000, 1006, 1044
	tagProvide, tagRequire                                = 1047, 1049
	tagDirIndexes, tagBaseNames, tagDirNames, tagOldPaths = 1116, 1117, 1118, 1027
)

// parseHeader reads a header: the number of entries and of data bytes, the entries (tag, type, offset, count, all big
// endian), the data.
func parseHeader(b []byte, room *nameBudget) (rpmHeader, error) {
	var h rpmHeader
	bad := diag.Errorf(diag.Invalid, "a damaged package header")
	if len(b) < 8 {
		return h, bad
	}
	n, size := int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[4:]))
	if n < 0 || n > 1<<16 || size < 0 || len(b) < 8+16*n+size {
		return h, bad
	}
	data := b[8+16*n : 8+16*n+size]
	var dirs, bases []string
	var at []uint32
	for i := range n {
		e := b[8+16*i:]
		off, count := int(binary.BigEndian.Uint32(e[8:])), int(binary.BigEndian.Uint32(e[12:]))
		if off < 0 || off > size || count < 0 || count > size {
			return h, bad
		}
		d := data[off:]
		switch binary.BigEndian.Uint32(e) {
		case tagName:
			h.name = first(texts(d, 1, room))
		case tagSource:
			h.source = first(texts(d, 1, room))
		case tagBuildTime:
			if v := numbers(d, 1, room); len(v) == 1 {
				h.built = int64(v[0])
			}
		case tagProvide:
			h.provides = texts(d, count, room)
		case tagRequire:
			h.requires = texts(d, count, room)
		case tagDirNames:
			dirs = texts(d, count, room)
		case tagBaseNames:
			bases = texts(d, count, room)
		case tagDirIndexes:
			at = numbers(d, count, room)
		case tagOldPaths:
			h.files = texts(d, count, room)
		}
		if err := room.err(); err != nil {
			return h, err
		}
	}
	for i, base := range bases {
		if i >= len(at) || int(at[i]) >= len(dirs) {
			return h, bad
		}
		if !room.take(len(dirs[at[i]]) + len(base)) {
			return h, room.err()
		}
		h.files = append(h.files, dirs[at[i]]+base)
	}
	return h, nil
}

func texts(d []byte, n int, room *nameBudget) []string {
	var out []string
	for range n {
		end := bytes.IndexByte(d, 0)
		if end < 0 || !room.take(end) {
			break
		}
		out = append(out, string(d[:end]))
		d = d[end+1:]
	}
	return out
}

func numbers(d []byte, n int, room *nameBudget) []uint32 {
	var out []uint32
	for ; n > 0 && len(d) >= 4 && room.take(0); n-- {
		out = append(out, binary.BigEndian.Uint32(d))
		d = d[4:]
	}
	return out
}

// sourceName is the name of a source package: "bash-5.1.8-2.fc35.src.rpm" is bash.
func sourceName(file string) string {
	s := strings.TrimSuffix(file, ".src.rpm")
	for range 2 {
		if i := strings.LastIndexByte(s, '-'); i > 0 {
			s = s[:i]
		}
	}
	return s
}

func rpmComponents(list []rpmHeader) []Component {
	source := map[string]string{}
	for _, p := range list {
		s := cmp.Or(sourceName(p.source), p.name)
		source[p.name] = s
		for _, v := range p.provides {
			if source[v] == "" {
				source[v] = s
			}
		}
		for _, f := range p.files { // packages may require files
			if strings.HasPrefix(f, "/usr/bin/") || strings.HasPrefix(f, "/bin/") || strings.HasPrefix(f, "/usr/sbin/") {
				source[f] = s
			}
		}
	}
	var out []Component
	var newest int64
	for _, p := range list {
		newest = max(newest, p.built)
	}
	for _, p := range list {
		if p.name == "" || p.name == "gpg-pubkey" { // a key, no package
			continue
		}
		c := Component{Name: "rpm:" + source[p.name], Paths: p.files}
		if p.built > 0 {
			t := time.Unix(p.built, 0)
			c.Clamp, c.Updates = &t, func() float64 { return rateSince(t, time.Unix(newest, 0)) }
		}
		for _, r := range p.requires {
			if s := source[r]; s != "" && s != source[p.name] {
				c.Needs = append(c.Needs, "rpm:"+s)
			}
		}
		out = append(out, c)
	}
	return out
}
