package relayer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/layer"
)

// debian is a root file system with a merged /usr, a diversion, two packages of one source and a removed one.
func debian() map[string]string {
	return map[string]string{
		"bin": "-> usr/bin", "lib": "-> usr/lib",
		"var/lib/dpkg/status": `Package: libc6
Status: install ok installed
Source: glibc (2.36-9)
Architecture: amd64
Multi-Arch: same
Version: 2.36-9+deb12u10
Description: library
 several
 lines

Package: libc-bin
Source: glibc
Status: install ok installed
Architecture: amd64
Depends: libc6 (>> 2.36), libc6 (<< 2.37)

Package: dash
Status: install ok installed
Architecture: amd64
Pre-Depends: libc6 (>= 2.36) | libc-none
Depends: awk
Provides: sh

Package: mawk
Status: install ok installed
Architecture: amd64
Provides: awk
Depends: libc6:any

Package: gone
Status: deinstall ok config-files
Architecture: amd64
`,
		"var/lib/dpkg/info/libc6:amd64.list": "/.\n/lib\n/lib/libc.so.6\n/usr/share/doc/libc6\n/usr/share/doc/libc6/copyright\n",
		"var/lib/dpkg/info/libc-bin.list":    "/.\n/usr/bin/ldd\n",
		"var/lib/dpkg/info/dash.list":        "/bin/dash\n/bin/sh\n/usr/share/man/sh.1\n",
		"var/lib/dpkg/info/mawk.list":        "/usr/bin/mawk\n/usr/bin/awk.other\n/usr/lib/mawk\n/usr/lib/mawk/a.py\n",
		"var/lib/dpkg/info/gone.list":        "/etc/gone\n",
		"var/lib/dpkg/diversions":            "/usr/share/man/sh.1\n/usr/share/man/sh.distrib.1\nbash\n",
		"usr/lib/libc.so.6":                  "libc", "usr/share/doc/libc6/copyright": "c", "usr/bin/ldd": "ldd", "usr/bin/dash": "dash", "usr/bin/sh": "-> dash",
		"usr/share/man/sh.distrib.1": "man", "usr/share/man/sh.1": "other", "usr/bin/mawk": "mawk", "usr/bin/awk.other": "= usr/bin/mawk",
		"usr/lib/mawk/a.py": "py", "usr/lib/mawk/__pycache__/a.pyc": "pyc", "etc/gone": "x", "etc/passwd": "root", "var/log/dpkg.log": "log", "root/": "",
	}
}

func TestDpkg(t *testing.T) {
	fs := tree(t, debian())
	got := found(t, dpkg{}, fs)
	if len(got) != 3 {
		t.Errorf("got %v", got)
	}
	if n := got["deb:dash"].Needs; !slices.Contains(n, "deb:glibc") || !slices.Contains(n, "deb:mawk") || len(n) != 2 {
		t.Errorf("dash needs %v", n)
	}
	layers := cut(t, fs, Options{})
	for name, want := range map[string]string{
		"deb:glibc": "usr/bin/ldd usr/lib/libc.so.6 usr/share/doc/libc6/copyright",
		"deb:dash":  "usr/bin/dash usr/bin/sh usr/share/man/sh.distrib.1",
		"deb:mawk":  "usr/bin/awk.other usr/bin/mawk usr/lib/mawk/__pycache__/a.pyc usr/lib/mawk/a.py",
	} {
		if got := where(t, layers, name); !strings.Contains(" "+got+" ", want) {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	top := files(layers[len(layers)-1])
	for _, p := range []string{"bin", "etc/gone", "etc/passwd", "usr/share/man/sh.1", "var/lib/dpkg/status", "var/log/dpkg.log"} {
		if !slices.Contains(strings.Fields(top), p) {
			t.Errorf("%s is not in the top layer: %s", p, top)
		}
	}
}

// Distroless images have a file for each package, and checksums instead of lists.
func TestDpkgStatusDir(t *testing.T) {
	fs := tree(t, map[string]string{
		"var/lib/dpkg/status.d/base":         "Package: base-files\nVersion: 12\n",
		"var/lib/dpkg/status.d/base.md5sums": "0123  etc/issue\n4567  usr/share/a b\n",
		"etc/issue":                          "Debian", "usr/share/a b": "x",
	})
	if got := where(t, cut(t, fs, Options{}), "deb:base-files"); got != "etc/issue usr/share/a b" {
		t.Errorf("got %s", got)
	}
}

func TestApk(t *testing.T) {
	fs := tree(t, map[string]string{
		"lib/apk/db/installed": "P:musl\nV:1\no:musl\nt:500\nF:lib\nR:ld-musl.so\n\nP:busybox\no:busybox\nD:so:libc.musl so:none !bad\nF:bin\nR:busybox\n\n" +
			"P:musl-utils\no:musl\np:so:libc.musl=1 cmd:ldd\nF:usr/bin\nR:ldd\n\nP:ssl-new\no:ssl-new\nr:ssl-old\nF:lib\nR:ssl.new\n\nP:ssl-old\nF:lib\nR:ssl.old\n",
		"lib/ld-musl.so": "m", "bin/busybox": "b", "usr/bin/ldd": "l", "lib/ssl.new": "n", "lib/ssl.old": "o",
	})
	got := found(t, apk{}, fs)
	if fmt.Sprint(got["apk:busybox"].Needs) != "[apk:musl]" {
		t.Errorf("busybox needs %v", got["apk:busybox"].Needs)
	}
	layers := cut(t, fs, Options{})
	if f := where(t, layers, "apk:musl"); f != "lib/ld-musl.so usr/bin/ldd" {
		t.Errorf("musl has %s", f)
	}
	if f := where(t, layers, "apk:ssl-new"); f != "lib/ssl.new lib/ssl.old" {
		t.Errorf("what replaces and is replaced: %s", f)
	}
	for _, l := range layers { // built at 500, the files are of 1000
		for _, e := range l.Entries {
			if e.Path == "lib/ld-musl.so" && e.ModTime.Unix() != 500 {
				t.Errorf("%s is of %d", e.Path, e.ModTime.Unix())
			}
		}
	}
}

func TestPacman(t *testing.T) {
	fs := tree(t, map[string]string{
		"var/lib/pacman/local/glibc-2-1/desc":  "%NAME%\nglibc\n\n%BASE%\nglibc\n\n%BUILDDATE%\n600\n",
		"var/lib/pacman/local/glibc-2-1/files": "%FILES%\nusr/\nusr/lib/libc.so\n",
		"var/lib/pacman/local/lib32-2-1/desc":  "%NAME%\nlib32-glibc\n\n%BASE%\nglibc\n\n%PROVIDES%\nlibc32=2\n",
		"var/lib/pacman/local/lib32-2-1/files": "%FILES%\nusr/lib32/libc.so\n",
		"var/lib/pacman/local/bash-5-1/desc":   "%NAME%\nbash\n\n%DEPENDS%\nglibc>=2\nlibc32\nsh\n",
		"var/lib/pacman/local/bash-5-1/files":  "%FILES%\nusr/bin/bash\n",
		"var/lib/pacman/local/ALPM_DB_VERSION": "9\n",
		"usr/lib/libc.so":                      "1",
		"usr/lib32/libc.so":                    "2",
		"usr/bin/bash":                         "3",
	})
	if n := found(t, pacman{}, fs)["pacman:bash"].Needs; fmt.Sprint(n) != "[pacman:glibc pacman:glibc]" {
		t.Errorf("bash needs %v", n)
	}
	if f := where(t, cut(t, fs, Options{}), "pacman:glibc"); f != "usr/lib/libc.so usr/lib32/libc.so" {
		t.Errorf("glibc has %s", f)
	}
}

// The databases of the module that reads two of the three forms.
func TestRpm(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/knqyf263/go-rpmdb").Output()
	dir := filepath.Join(strings.TrimSpace(string(out)), "pkg", "testdata")
	if _, serr := os.Stat(dir); err != nil || serr != nil {
		t.Skip("the module's test data is not here")
	}
	for _, c := range []struct{ file, to, name, path, needs string }{
		{"fedora35/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite", "rpm:bash", "/usr/bin/bash", "rpm:ncurses"},
		{"cbl-mariner-2.0/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite", "rpm:glibc", "", "rpm:filesystem"},
		{"sle15-bci/Packages.db", "usr/lib/sysimage/rpm/Packages.db", "rpm:bash", "/bin/bash", "rpm:ncurses"},
		{"centos7-plain/Packages", "var/lib/rpm/Packages", "rpm:coreutils", "/usr/bin/cat", "rpm:glibc"},
	} {
		data, err := os.ReadFile(filepath.Join(dir, c.file))
		if err != nil {
			t.Error(err)
			continue
		}
		got := found(t, rpm{}, tree(t, map[string]string{c.to: string(data)}))
		x := got[c.name]
		if c.path != "" && !slices.Contains(x.Paths, c.path) || len(x.Paths) < 20 || x.Clamp == nil || c.needs != "" && !slices.Contains(x.Needs, c.needs) {
			t.Errorf("%s: of %d components, %s has %d paths, needs %v, is of %v", c.file, len(got), c.name, len(x.Paths), x.Needs, x.Clamp)
		}
	}
}

// Damaged databases are errors, whatever is wrong with them.
func TestRpmDamaged(t *testing.T) {
	for name, data := range map[string]string{
		"short": "SQLite format 3\x00", "other": strings.Repeat("x", 4096), "pages": "SQLite format 3\x00\x10\x00" + strings.Repeat("\xff", 8200),
	} {
		_, err := rpm{}.Find(t.Context(), tree(t, map[string]string{"var/lib/rpm/rpmdb.sqlite": data}))
		if diag.KindOf(err) != diag.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseHeader([]byte{0, 0, 0, 9, 0, 0, 0, 1}, newNameBudget()); err == nil {
		t.Error("a header without entries was taken")
	}
}

func FuzzSQLite(f *testing.F) {
	f.Add([]byte("SQLite format 3\x00\x02\x00" + strings.Repeat("\x00", 600)))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = sqliteRows(data, "Packages", func(row [][]byte) error { // errors are fine, panics are not
			_, err := parseHeader(row[len(row)-1], newNameBudget())
			return err
		})
	})
}

func TestPython(t *testing.T) {
	fs := tree(t, map[string]string{
		"opt/app/lib/Py_YAML-6.dist-info/RECORD":   "yaml/__init__.py,sha256=x,1\n../bin/yaml,,\n\"odd,name.py\",,\nPy_YAML-6.dist-info/RECORD,,\n",
		"opt/app/lib/Py_YAML-6.dist-info/METADATA": "Name: Py_YAML\nRequires-Dist: urllib3 (>=1)\nRequires-Dist: nothing; extra == 'x'\n\nbody\n",
		"opt/app/lib/yaml/__init__.py":             "1", "opt/app/bin/yaml": "2", "opt/app/lib/odd,name.py": "3",
		"opt/app/lib/yaml/__pycache__/i.pyc": "4", "opt/app/lib/urllib3-2.dist-info/RECORD": "urllib3.py,,\n", "opt/app/lib/urllib3.py": "5",
		"opt/app/main.py": "6",
	})
	if n := found(t, python{}, fs)["pip:py-yaml"].Needs; fmt.Sprint(n) != "[pip:urllib3]" {
		t.Errorf("py-yaml needs %v", n)
	}
	layers := cut(t, fs, Options{})
	if f := where(t, layers, "pip:py-yaml"); !strings.Contains(f, "opt/app/bin/yaml") || !strings.Contains(f, "i.pyc") || !strings.Contains(f, "odd,name.py") || !strings.Contains(f, "METADATA") {
		t.Errorf("py-yaml has %s", f)
	}
	if f := files(layers[len(layers)-1]); f != "opt/app/main.py" {
		t.Errorf("the top layer has %s", f)
	}
}

func TestNode(t *testing.T) {
	fs := tree(t, map[string]string{
		"app/package.json": `{"name":"app","version":"1.0.0","dependencies":{"a":"1"}}`, "app/index.js": "x",
		"app/node_modules/a/package.json":                            `{"name":"a","version":"1.2.3","dependencies":{"b":"^1","@s/c":"2"}}`,
		"app/node_modules/a/lib/x.js":                                "1",
		"app/node_modules/a/node_modules/b/package.json":             `{"name":"b","version":"1.0.0"}`,
		"app/node_modules/b/package.json":                            `{"name":"b","version":"2.0.0"}`,
		"app/node_modules/@s/c/package.json":                         `{"name":"@s/c","version":"2.0.0"}`,
		"app/node_modules/@s/c/test/package.json":                    `{"type":"module"}`,
		"web/node_modules/d":                                         "-> .pnpm/d@4.0.0/node_modules/d",
		"web/node_modules/.pnpm/d@4.0.0/node_modules/d/package.json": `{"name":"d","version":"4.0.0","dependencies":{"e":"5"}}`,
		"web/node_modules/.pnpm/d@4.0.0/node_modules/e":              "-> ../../e@5.0.0/node_modules/e",
		"web/node_modules/.pnpm/e@5.0.0/node_modules/e/package.json": `{"name":"e","version":"5.0.0"}`,
	})
	got := found(t, node{}, fs)
	if n := got["npm:a@1.2.3"].Needs; fmt.Sprint(n) != "[npm:@s/c@2.0.0 npm:b@1.0.0]" {
		t.Errorf("a needs %v", n)
	}
	if n := got["npm:d@4.0.0"].Needs; fmt.Sprint(n) != "[npm:e@5.0.0]" {
		t.Errorf("d needs %v", n)
	}
	layers := cut(t, fs, Options{})
	if f := where(t, layers, "npm:@s/c@2.0.0"); f != "app/node_modules/@s/c/package.json app/node_modules/@s/c/test/package.json" {
		t.Errorf("@s/c has %s", f)
	}
	if f := where(t, layers, "npm:a@1.2.3"); f != "app/node_modules/a/lib/x.js app/node_modules/a/package.json" {
		t.Errorf("a has %s", f)
	}
	if f := family("npm:@s/c@2.0.0"); f != "npm:@s/c" {
		t.Errorf("family %s", f)
	}
}

func TestNix(t *testing.T) {
	hash := func(c string) string { return strings.Repeat(c, 32) }
	libc, hello, data := hash("a")+"-glibc-2.38", hash("b")+"-hello-2.12", hash("c")+"-data"
	base := map[string]string{
		"nix/store/" + libc + "/lib/libc.so": "libc",
		"nix/store/" + hello + "/bin/hello":  strings.Repeat(".", 1<<20-20) + "/nix/store/" + libc + "/lib",
		"nix/store/" + hello + "/share":      "-> /nix/store/" + data,
		"nix/store/" + data:                  "data",
		"nix/var/nix/db/db.sqlite":           "db",
	}
	want := map[string]string{"nix:" + hello: "[nix:" + libc + " nix:" + data + "]", "nix:" + libc: "[]", "nix:" + data: "[]"}
	check := func(t *testing.T, g nix, fs *layer.FS) {
		t.Helper()
		for n, c := range found(t, g, fs) {
			if fmt.Sprint(c.Needs) != want[n] {
				t.Errorf("%s needs %v", n, c.Needs)
			}
		}
		if f := where(t, cut(t, fs, Options{Generators: []Generator{g}}), "nix:"+data); f != "nix/store/"+data {
			t.Errorf("data has %s", f)
		}
	}
	t.Run("scanned", func(t *testing.T) { check(t, nix{}, tree(t, base)) })
	t.Run("registered", func(t *testing.T) {
		base["nix-path-registration"] = fmt.Sprintf("/nix/store/%s\nsha256:0\n1\n\n0\n/nix/store/%s\nsha256:0\n1\n\n2\n/nix/store/%s\n/nix/store/%s\n/nix/store/%s\nsha256:0\n1\n\n0\n", libc, hello, libc, data, data)
		check(t, nix{}, tree(t, base))
		base["nix-path-registration"] = "/nix/store/x\n\n1\n\n9\n"
		if _, err := (nix{}).Find(t.Context(), tree(t, base)); diag.KindOf(err) != diag.Invalid {
			t.Errorf("a damaged registration: %v", err)
		}
		delete(base, "nix-path-registration")
	})
	t.Run("given", func(t *testing.T) {
		text := fmt.Sprintf(`{"graph":[{"path":"/nix/store/%s","references":["/nix/store/%s","/nix/store/%s","/nix/store/%s"]}]}`, hello, hello, libc, data)
		list, err := ParseGenerator("nix,graph=file", func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			t.Fatal(err)
		}
		check(t, list[0].(nix), tree(t, base))
	})
	if f := found(t, nix{}, tree(t, base))["nix:"+libc].Family; f != "nix:glibc" {
		t.Errorf("family %s", f)
	}
}

func TestFiles(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe") // a test is a Go program
	if err != nil {
		t.Fatal(err)
	}
	fs := tree(t, map[string]string{"srv/app.jar": "jar", "srv/go": string(self), "srv/model": strings.Repeat("m", 2000), "srv/small": "s", "srv/model.link": "= srv/model"})
	for e := range fs.Entries() {
		if e.Path == "srv/go" {
			e.Mode = 0o755
		}
	}
	g, err := ParseGenerator("big,min=1000", nil)
	if err != nil {
		t.Fatal(err)
	}
	layers := cut(t, fs, Options{Generators: append([]Generator{binaries{}}, g...)})
	for name, want := range map[string]string{"file:srv/app.jar": "srv/app.jar", "file:srv/go": "srv/go", "file:srv/model": "srv/model srv/model.link"} {
		if got := where(t, layers, name); got != want {
			t.Errorf("%s has %s", name, got)
		}
	}
	if layers[0].Name != "file:srv/model" || files(layers[len(layers)-1]) != "srv/small" {
		t.Errorf("programs are near the top: %s is at the bottom, %s at the top", layers[0].Name, files(layers[len(layers)-1]))
	}
	for text, word := range map[string]string{"dpgk": "no such", "big,min=x": "number", "dpkg,x=1": "unknown setting"} {
		if _, err := ParseGenerator(text, nil); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whoever made a file says what it belongs to.
func TestXattr(t *testing.T) {
	fs := tree(t, debian())
	for e := range fs.Entries() {
		if e.Path == "usr/bin/dash" || e.Path == "var/log/dpkg.log" {
			e.Xattrs = map[string]string{"user.component": "mine"}
		}
	}
	if f := where(t, cut(t, fs, Options{}), "xattr:mine"); f != "usr/bin/dash var/log/dpkg.log" {
		t.Errorf("mine has %s", f)
	}
}
