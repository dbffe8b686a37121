package relayer

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
)

// FuzzLists reads the lists of packages that an image holds.
func FuzzLists(f *testing.F) {
	for _, s := range []string{"P:a\nV:1\nF:usr\nR:x\n\n", "%NAME%\na\n\n%DEPENDS%\nb\n", "/nix/store/x\nhash\n1\n\n0\n", `[{"path":"/nix/store/a","references":["/nix/store/b"]}]`, "-1\n", "/nix/store/x\nh\n1\nd\n99999999999\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		apkInstalled(string(data), newNameBudget())
		sections(string(data))
		_, _ = registration(string(data))
		_, _ = readGraph(data)
		names(string(data))
	})
}

// FuzzGenerators asks all generators what an image holds whose lists of packages are hostile. Only what the image has is found.
func FuzzGenerators(f *testing.F) {
	for _, s := range []string{"Package: a\nStatus: install ok installed\nVersion: 1\n\n", "P:a\nV:1\nF:usr\nR:x\n\n", "%NAME%\na\n\n%FILES%\nusr/\n../x\n", "a.py,,\n\"b,c\",,\n../../../etc/x,,\n", `{"name":"a","version":"1","dependencies":{"../b":"1"}}`, "Name: a\nRequires-Dist: b\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		text := string(data)
		fs := tree(t, map[string]string{
			"var/lib/dpkg/status": text, "var/lib/dpkg/info/a.list": text, "var/lib/dpkg/diversions": text, "var/lib/apt/extended_states": text,
			"lib/apk/db/installed": text, "var/lib/pacman/local/a-1/desc": text, "var/lib/pacman/local/a-1/files": text,
			"app/lib/a-1.dist-info/RECORD": text, "app/lib/a-1.dist-info/METADATA": text, "app/node_modules/a/package.json": text, "usr/x": "x", "etc/x": "x",
		})
		for _, g := range Generators() {
			if _, err := g.Find(t.Context(), fs); diag.KindOf(err) == diag.Internal && err != nil {
				t.Errorf("%s blames itself: %v", g.Name(), err)
			}
		}
	})
}

// A header of half a megabyte whose entries overlap, or whose files are in a directory with a long name, names terabytes.
func TestPackageHeaderThatNamesTerabytes(t *testing.T) {
	const size = 512 << 10
	header := func(entries ...[4]uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(entries)))
		b = binary.BigEndian.AppendUint32(b, size)
		for _, e := range entries {
			for _, v := range e {
				b = binary.BigEndian.AppendUint32(b, v)
			}
		}
		data := make([]byte, size)
		for i := range size / 2 {
			data[i] = 'd'
		}
		return append(b, data...)
	}
	long := [4]uint32{tagDirNames, 8, 0, 1}
	bases := [4]uint32{tagBaseNames, 8, size / 2, size / 4}
	indexes := [4]uint32{tagDirIndexes, 4, size / 2, size / 16}
	many := make([][4]uint32, 60000)
	for i := range many {
		many[i] = [4]uint32{tagRequire, 8, 0, size}
	}
	for name, b := range map[string][]byte{"long directory": header(long, bases, indexes), "overlapping entries": header(many...)} {
		if _, err := parseHeader(b, newNameBudget()); diag.KindOf(err) != diag.Exhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A short list whose directory has a long name, or which many packages claim, would take the memory of the machine.
func TestListsThatNameTerabytes(t *testing.T) {
	long := strings.Repeat("d", 1<<20)
	deep := strings.TrimSuffix(strings.Repeat(strings.Repeat("d", 200)+"/", 18), "/")
	for name, files := range map[string]map[string]string{
		"apk":    {"lib/apk/db/installed": "P:a\nV:1\nF:" + long + "\n" + strings.Repeat("R:x\n", 1<<20) + "\n"},
		"dpkg":   {"var/lib/dpkg/status": strings.Repeat("Package: a\nStatus: install ok installed\n\n", 20000), "var/lib/dpkg/info/a.list": strings.Repeat("/x\n", 1<<20)},
		"pacman": pacmanLinks(),
		"python": {deep + "/a-1.dist-info/RECORD": strings.Repeat("x\n", 1<<20)},
	} {
		fs := tree(t, files)
		var found error
		for _, g := range []Generator{apk{}, dpkg{}, pacman{}, python{}} {
			if _, err := g.Find(t.Context(), fs); err != nil {
				found = err
			}
		}
		if diag.KindOf(found) != diag.Exhausted {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// pacmanLinks are 300 packages whose lists would be names of one file.
func pacmanLinks() map[string]string {
	files := map[string]string{}
	list := "%FILES%\n" + strings.Repeat("\n", 1<<20)
	for i := range 300 {
		files[fmt.Sprintf("var/lib/pacman/local/p%d/files", i)] = list
	}
	return files
}
