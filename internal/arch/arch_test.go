// Package arch checks the structure of the program: who may import whom, and how large things may grow.
package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/strata-build/strata/"

// rooms are the packages in layers, lowest first. A package imports only packages of lower layers, and those of its own
// layer that beside names.
var rooms = [][]string{
	{"diag", "span"},
	{"graph", "netguard", "strictjson"},
	{"image", "event", "outfile", "sandbox/spawn", "sandbox/bpf", "sandbox/restrict", "sandbox/reexec"},
	{"layer/inflate", "layer", "store", "registry", "session", "sandbox", "tree", "history", "tracing", "proxy", "solve", "dockerfile/lint", "dockerfile", "llb", "signature", "provenance"},
	{"archive", "relayer", "policy", "session/remote"},
	{"op", "source", "export", "cache", "pack"},
	{"engine"},
	{"api/local", "api/buildkit"},
	{"cmd/strata/progress", "cmd/strata", "bench"},
}

var beside = map[string][]string{
	"span":             {"diag"},
	"image":            nil,
	"sandbox/restrict": {"sandbox/bpf"},
	"layer":            {"layer/inflate"},
	"tree":             {"store", "layer", "session"},
	"registry":         {"session"},
	"dockerfile":       {"dockerfile/lint"},
	"cmd/strata":       {"cmd/strata/progress"},
}

// roots put the program together: they import whatever there is.
var roots = []string{"engine", "cmd/strata"}

// leavesOnly are packages of the middle layer that know nothing but values.
var leavesOnly = []string{"solve", "dockerfile", "llb", "layer", "layer/inflate", "sandbox", "session", "signature", "provenance"}

// forbidden are modules that must never be linked into the binary: the parts of BuildKit that Strata replaces.
var forbidden = []string{
	"github.com/moby/buildkit/solver/", "github.com/moby/buildkit/cache", "github.com/moby/buildkit/worker", "github.com/moby/buildkit/executor",
	"github.com/moby/buildkit/snapshot", "github.com/moby/buildkit/exporter", "github.com/moby/buildkit/source/", "github.com/moby/buildkit/control",
	"github.com/moby/buildkit/client", "github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb", "github.com/moby/buildkit/frontend/dockerui",
	"github.com/moby/buildkit/frontend/gateway", "github.com/moby/buildkit/session",
	"github.com/google/go-containerregistry",
}

// allowed are exceptions: packages of values below a forbidden path.
var allowed = []string{
	"github.com/moby/buildkit/solver/pb", "github.com/moby/buildkit/solver/errdefs", "github.com/moby/buildkit/frontend/gateway/pb",
}

const (
	maxFileLines     = 800
	maxFunctionLines = 100
	maxParameters    = 5
	maxMethods       = 5
	maxImports       = 12
)

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,Deps,GoFiles", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var x *exec.ExitError
		if errors.As(err, &x) {
			t.Fatalf("go list: %s", x.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func layerOf(room string) int {
	for i, l := range rooms {
		for _, r := range l {
			if r == room {
				return i
			}
		}
	}
	return -1
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		room := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(room, "internal/") {
			continue
		}
		own := layerOf(room)
		if own < 0 {
			t.Errorf("%s is in no layer: give it a place in rooms", room)
			continue
		}
		count := 0
		for _, imp := range p.Imports {
			other, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if other != "strictjson" { // it stands for encoding/json
				count++
			}
			switch l := layerOf(other); {
			case contains(leavesOnly, room) && l > 2 && !contains(beside[room], other):
				t.Errorf("%s imports %s, but may import leaves only", room, other)
			case l < own || l == own && contains(beside[room], other):
			default:
				t.Errorf("%s must not import %s", room, other)
			}
		}
		if count > maxImports && !contains(roots, room) {
			t.Errorf("%s imports %d packages of the module, more than %d", room, count, maxImports)
		}
	}
}

// ownJSON are the rooms and files that decode only JSON that this program wrote itself, or check it first.
var ownJSON = []string{
	"store/", "history/", "api/local/", "bench/", "conformance/", "tools/", "internal/", "strictjson/", "testdata/",
	"engine/cache.go", "image/image.go", "policy/policy.go", "op/layersdir.go", "sandbox/guardian.go",
}

// TestJSONFromOutside requires that JSON of others is decoded within the limits of strictjson.
func TestJSONFromOutside(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		own := func(prefix string) bool {
			return strings.HasPrefix(rel, prefix) || strings.Contains(rel, "/"+prefix) && prefix == "testdata/"
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || slices.ContainsFunc(ownJSON, own) {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Unmarshal" && sel.Sel.Name != "NewDecoder" {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "json" {
				t.Errorf("%s: json.%s has no limits: use strictjson, or list the file in ownJSON if the program wrote the JSON itself", set.Position(n.Pos()), sel.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestForbiddenModules(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"cmd/strata" {
			continue
		}
		for _, dep := range p.Deps {
			for _, f := range forbidden {
				if strings.HasPrefix(dep, f) && !contains(allowed, dep) {
					t.Errorf("the binary links %s", dep)
				}
			}
		}
		return
	}
	t.Error("cmd/strata was not found")
}

func TestSizes(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools" || d.Name() == "conformance"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		files++
		rel, _ := filepath.Rel(root, path)
		checkFile(t, path, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("only %d files were looked at", files)
	}
}

func checkFile(t *testing.T, path, rel string) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return
	}
	if n := set.Position(f.End()).Line; n > maxFileLines {
		t.Errorf("%s has %d lines, more than %d", rel, n, maxFileLines)
	}
	test := strings.HasSuffix(path, "_test.go")
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if !test {
				checkFunc(t, set, rel, n)
			}
		case *ast.TypeSpec:
			if i, ok := n.Type.(*ast.InterfaceType); ok && !test && i.Methods.NumFields() > maxMethods {
				t.Errorf("%s: interface %s has %d methods, more than %d", rel, n.Name.Name, i.Methods.NumFields(), maxMethods)
			}
		}
		return true
	})
}

func checkFunc(t *testing.T, set *token.FileSet, rel string, f *ast.FuncDecl) {
	where := fmt.Sprintf("%s: %s", rel, f.Name.Name)
	if f.Name.Name == "init" && f.Recv == nil {
		t.Errorf("%s: nothing is registered or computed in init", where)
	}
	if n := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; n > maxFunctionLines {
		t.Errorf("%s has %d lines, more than %d", where, n, maxFunctionLines)
	}
	if n := f.Type.Params.NumFields(); n > maxParameters {
		t.Errorf("%s has %d parameters, more than %d", where, n, maxParameters)
	}
}
