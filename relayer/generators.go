package relayer

import (
	"bufio"
	"bytes"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// Generators are all of them, in the order in which they are asked.
func Generators() []Generator {
	return []Generator{xattrs{}, dpkg{}, apk{}, rpm{}, pacman{}, nix{}, python{}, node{}, binaries{}, bigFiles{min: bigFile}}
}

// ParseGenerator reads what a user writes: NAME, or NAME,KEY=VALUE,… The only settings are big's min, in bytes, and nix's
// graph, a JSON file with the references of the store paths. "auto" stands for all.
func ParseGenerator(text string, read func(path string) ([]byte, error)) ([]Generator, error) {
	name, rest, _ := strings.Cut(text, ",")
	if name == "auto" && rest == "" {
		return Generators(), nil
	}
	var names []string
	for _, g := range Generators() {
		names = append(names, g.Name())
		if g.Name() != name {
			continue
		}
		for rest != "" {
			var kv string
			kv, rest, _ = strings.Cut(rest, ",")
			var err error
			if g, err = set(g, kv, read); err != nil {
				return nil, err
			}
		}
		return []Generator{g}, nil
	}
	return nil, suggest(diag.Errorf(diag.Invalid, "no such generator: %s: it must be one of %s or auto", name, strings.Join(names, ", ")), name, names)
}

// limits of what generators read, in bytes.
const (
	maxDatabase = 256 << 20
	maxList     = 16 << 20
)

// stanzas calls f for each paragraph of "Key: value" lines; lines that begin with a space go on the value before.
// Source: Debian policy 5.1.
func stanzas(data []byte, f func(map[string]string)) error {
	cur, last := map[string]string{}, ""
	in := bufio.NewScanner(bytes.NewReader(data))
	in.Buffer(nil, maxList)
	end := func() {
		if len(cur) > 0 {
			f(cur)
		}
		cur, last = map[string]string{}, ""
	}
	for in.Scan() {
		line := in.Text()
		switch {
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				cur[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			k, v, _ := strings.Cut(line, ":")
			last = k
			cur[k] = strings.TrimSpace(v)
		}
	}
	end()
	return in.Err()
}

// read returns a file's content, or nothing if there is no such file.
func read(fs *layer.FS, p string, limit int64) ([]byte, error) {
	b, err := fs.ReadFile(p, limit)
	if diag.KindOf(err) == diag.NotFound && err != nil {
		return nil, nil
	}
	return b, err
}

// firstWord cuts a dependency such as "libc6 (>= 2.36)", "so:libc.musl.so.1", "foo>=1" down to its name.
func firstWord(s string) string {
	s = strings.TrimLeft(strings.TrimSpace(s), "!")
	if i := strings.IndexAny(s, " \t(<>=~[;"); i >= 0 {
		s = s[:i]
	}
	return s
}
