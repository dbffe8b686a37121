package relayer

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/strictjson"
)

// nix finds the store paths of a closure. The references between them come, in this order, from the graph that was given,
// from the file nix-path-registration, or from the files themselves, as Nix finds them: by the hashes in them. Sources:
// nix-store(1) --load-db, Nix manual "exportReferencesGraph".
type nix struct{ graph map[string][]string } // base names

func (nix) Name() string { return "nix" }

const nixStore = "nix/store"

// nixName is a hash of 32 digits in Nix's base 32, a dash and a name, which may end in a version.
var (
	nixName    = regexp.MustCompile(`^[0-9a-df-np-sv-z]{32}-(.+)$`)
	nixVersion = regexp.MustCompile(`-[0-9][^-]*`)
)

func (g nix) Find(ctx context.Context, fs *layer.FS) ([]Component, error) {
	var items []string
	for _, n := range fs.ReadDir(nixStore) {
		if nixName.MatchString(n) {
			items = append(items, n)
		}
	}
	if len(items) == 0 {
		return nil, nil
	}
	graph, err := g.references(ctx, fs, items)
	if err != nil {
		return nil, err
	}
	var out []Component
	for _, n := range items {
		c := Component{Name: "nix:" + n, Family: "nix:" + nixVersion.ReplaceAllString(nixName.FindStringSubmatch(n)[1], "")}
		p := nixStore + "/" + n
		if e, ok := fs.Lookup(p); ok && e.Type == layer.Dir {
			c.Dirs = []string{p}
		} else {
			c.Paths = []string{p}
		}
		for _, r := range graph[n] {
			if r != n {
				c.Needs = append(c.Needs, "nix:"+r)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

func (g nix) references(ctx context.Context, fs *layer.FS, items []string) (map[string][]string, error) {
	if g.graph != nil {
		return g.graph, nil
	}
	data, err := read(fs, "nix-path-registration", maxDatabase)
	if err != nil {
		return nil, err
	}
	if data != nil {
		return registration(string(data))
	}
	return scan(ctx, fs, items)
}

func storeName(p string) string {
	p = strings.TrimPrefix(clean(p), nixStore+"/")
	name, _, _ := strings.Cut(p, "/")
	return name
}

// registration reads what nix-store --dump-db writes: for each path its name, hash, size, deriver, the number of
// references, and these.
func registration(text string) (map[string][]string, error) {
	out := map[string][]string{}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); {
		if i+4 >= len(lines) {
			return nil, diag.Errorf(diag.Invalid, "nix-path-registration:%d: cut off", i+1)
		}
		n, err := strconv.Atoi(lines[i+4])
		if err != nil || n < 0 || n > len(lines)-i-5 {
			return nil, diag.Errorf(diag.Invalid, "nix-path-registration:%d: %q is no number of references", i+5, lines[i+4])
		}
		name := storeName(lines[i])
		out[name] = []string{}
		for _, r := range lines[i+5 : i+5+n] {
			out[name] = append(out[name], storeName(r))
		}
		i += 5 + n
	}
	return out, nil
}

// readGraph reads the JSON of exportReferencesGraph: a list of {path, references}, or an object with such a list.
func readGraph(data []byte) (map[string][]string, error) {
	type node struct {
		Path       string   `json:"path"`
		References []string `json:"references"`
	}
	var list []node
	if strictjson.Unmarshal(data, &list) != nil {
		var object map[string]json.RawMessage
		if err := strictjson.Unmarshal(data, &object); err != nil {
			return nil, diag.Errorf(diag.Invalid, "the reference graph: %w", err)
		}
		for _, raw := range object {
			var more []node
			if strictjson.Unmarshal(raw, &more) == nil {
				list = append(list, more...)
			}
		}
	}
	out := map[string][]string{}
	for _, n := range list {
		for _, r := range n.References {
			out[storeName(n.Path)] = append(out[storeName(n.Path)], storeName(r))
		}
	}
	if len(out) == 0 {
		return nil, diag.Errorf(diag.Invalid, "the reference graph names no references")
	}
	return out, nil
}

// scan looks for the names of store paths in the files and symlinks of each.
func scan(ctx context.Context, fs *layer.FS, items []string) (map[string][]string, error) {
	byHash := map[string]string{}
	for _, n := range items {
		byHash[n[:32]] = n
	}
	out := map[string][]string{}
	buf := make([]byte, 1<<20)
	for e, err := range fs.Entries() {
		if err != nil || ctx.Err() != nil {
			return nil, err
		}
		if !strings.HasPrefix(e.Path, nixStore+"/") {
			continue
		}
		from := storeName(e.Path)
		found := func(hash []byte) {
			if to := byHash[string(hash)]; to != "" && !slices.Contains(out[from], to) {
				out[from] = append(out[from], to)
			}
		}
		if e.Type == layer.Symlink {
			hashes([]byte(e.Link), found)
		} else if e.Type == layer.File && e.Size > 0 {
			if err := scanFile(e, buf, found); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

var nixPrefix = []byte("/nix/store/")

func hashes(b []byte, found func([]byte)) {
	for {
		i := bytes.Index(b, nixPrefix)
		if i < 0 || len(b) < i+len(nixPrefix)+32 {
			return
		}
		b = b[i+len(nixPrefix):]
		found(b[:32])
	}
}

func scanFile(e *layer.Entry, buf []byte, found func([]byte)) error {
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	overlap := len(nixPrefix) + 32
	have := 0
	for {
		n, err := io.ReadFull(r, buf[have:])
		hashes(buf[:have+n], found)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return diag.Errorf(diag.KindOf(err), "%s: %w", e.Path, err)
		}
		have = copy(buf, buf[len(buf)-overlap:])
	}
}
