package dockerfile

import (
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestReadInputs(t *testing.T) {
	archive := "\x1f\x8b" + strings.Repeat("x", 10)
	for _, c := range []struct {
		name   string
		req    Request
		files  map[string]string
		source string // name and text
		ignore string
		kind   diag.Kind
	}{
		{name: "plain", files: map[string]string{"dockerfile:/Dockerfile": "FROM a", "context:/.dockerignore": "x"}, source: "Dockerfile=FROM a", ignore: ".dockerignore=x"},
		{
			name: "beside the Dockerfile", files: map[string]string{"dockerfile:/Dockerfile": "FROM a", "dockerfile:/Dockerfile.dockerignore": "y", "context:/.dockerignore": "x"},
			source: "Dockerfile=FROM a", ignore: "Dockerfile.dockerignore=y",
		},
		{name: "lower case", files: map[string]string{"dockerfile:/dockerfile": "FROM b"}, source: "Dockerfile=FROM b"},
		{name: "other name", req: Request{Filename: "sub/My.Dockerfile", DockerfileDir: "files"}, files: map[string]string{"files:/sub/My.Dockerfile": "FROM c"}, source: "sub/My.Dockerfile=FROM c"},
		{name: "missing", kind: diag.NotFound},
		{name: "given", req: Request{Source: &diag.Source{Name: "-", Data: []byte("FROM d")}}, files: map[string]string{"context:/.dockerignore": "x"}, source: "-=FROM d", ignore: ".dockerignore=x"},
		{name: "git", req: Request{ContextURL: "https://h/r.git"}, files: map[string]string{"source.git:/Dockerfile": "FROM e", "source.git:/.dockerignore": "x", "context:/.dockerignore": "x"}, source: "Dockerfile=FROM e"},
		{name: "git with a local Dockerfile", req: Request{ContextURL: "https://h/r.git", LocalDocker: true}, files: map[string]string{"dockerfile:/Dockerfile": "FROM f"}, source: "Dockerfile=FROM f"},
		{name: "http archive", req: Request{ContextURL: "https://h/a.tar.gz"}, files: map[string]string{"source.http:/context": archive, "file:/Dockerfile": "FROM g"}, source: "Dockerfile=FROM g"},
		{name: "http file", req: Request{ContextURL: "https://h/Dockerfile"}, files: map[string]string{"source.http:/context": "FROM h"}, source: "context=FROM h"},
		{name: "too large", files: map[string]string{"dockerfile:/Dockerfile": strings.Repeat("#", MaxInput+1)}, kind: diag.Exhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ReadInputs(t.Context(), c.req, &fake{files: c.files})
			if c.kind != 0 {
				if diag.KindOf(err) != c.kind {
					t.Fatalf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := show(got.Source); s != c.source {
				t.Errorf("source %s", s)
			}
			if s := show(got.Ignore); s != c.ignore {
				t.Errorf("ignore %s", s)
			}
		})
	}
}

func show(s *diag.Source) string {
	if s == nil {
		return ""
	}
	return s.Name + "=" + string(s.Data)
}

// An http context that is no archive is the Dockerfile, and the directory that holds it is the context.
func TestHTTPContext(t *testing.T) {
	for _, c := range []struct{ head, kind string }{{"\x1f\x8b", "file"}, {"FROM scratch", "source.http"}} {
		r := &fake{files: map[string]string{"source.http:/context": c.head}}
		plan, err := Plan(t.Context(), Request{ContextURL: "https://h/x", Source: &diag.Source{Name: "Dockerfile", Data: []byte("FROM scratch\nCOPY . /\n")}}, r)
		if err != nil {
			t.Fatal(err)
		}
		if in := plan.Targets[0].Root.V.In[0].V; in.Op.Kind() != c.kind {
			t.Errorf("%q: the context is a %s", c.head, in.Op.Kind())
		}
	}
}

func TestParseGit(t *testing.T) {
	for s, want := range map[string]*graph.Git{
		"https://github.com/a/b.git":                     {Remote: "https://github.com/a/b.git"},
		"https://github.com/a/b.git#main:x/../y/":        {Remote: "https://github.com/a/b.git", Ref: "main", Subdir: "y"},
		"http://u:p@h/b.git#:sub":                        {Remote: "http://u:p@h/b.git", Subdir: "sub"},
		"git@github.com:a/b.git#v1":                      {Remote: "git@github.com:a/b.git", Ref: "v1"},
		"git@github.com:a/b?tag=v1":                      {Remote: "git@github.com:a/b", Ref: "refs/tags/v1"},
		"ssh://git@h:22/a#x":                             {Remote: "ssh://git@h:22/a", Ref: "x"},
		"git://h/a":                                      {Remote: "git://h/a"},
		"https://h/b.git?branch=x&subdir=s&commit=abc":   {Remote: "https://h/b.git", Ref: "refs/heads/x", Subdir: "s", Checksum: "abc"},
		"https://h/b.git?keep-git-dir&submodules=0":      {Remote: "https://h/b.git", KeepDir: true, SkipSubmodules: true},
		"https://h/b.git?mtime=commit&fetch-by-commit=1": {Remote: "https://h/b.git", MTimeCommit: true, FetchByCommit: true},
		"github.com/a/b":                                 {Remote: "https://github.com/a/b.git"},
		"./git@github.com:a/b.git":                       nil,
		"https://h/file.tar.gz":                          nil,
		"https://github.com/a/b":                         nil,
		"dir/file":                                       nil,
		"ftp://h/b.git":                                  nil,
		"":                                               nil,
	} {
		g, ok, err := ParseGit(s, true)
		if want != nil { // where the client may have a login
			want.AuthToken, want.AuthHeader = "GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"
		}
		switch {
		case err != nil:
			t.Errorf("%s: %v", s, err)
		case ok != (want != nil) || ok && *g != *want:
			t.Errorf("%s: %v %+v", s, ok, g)
		}
	}
	for _, bad := range []string{
		"https://h/b.git?tag=a&branch=b", "https://h/b.git?ref=a#b", "https://h/b.git?ref=", "https://h/b.git?what=1", "https://h/b.git?mtime=now",
		"https://h/b.git?submodules=perhaps", "https://h/b.git?ref=a&ref=b",
	} {
		if _, ok, err := ParseGit(bad, true); !ok || diag.KindOf(err) != diag.Invalid {
			t.Errorf("%s: %v %v", bad, ok, err)
		}
	}
	if _, ok, _ := ParseGit("github.com/a/b", false); ok {
		t.Error("a path of the context is taken for a repository")
	}
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "LINUX/x86_64": "linux/amd64", "arm64": "linux/arm64", "linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7",
		"linux/arm/6": "linux/arm/v6", "aarch64": "linux/arm64", "armel": "linux/arm/v6", "windows(10.0.1)/amd64": "windows(10.0.1)/amd64",
		"windows(10.0.1)+win32k/amd64": "windows(10.0.1)+win32k/amd64", "linux/riscv64": "linux/riscv64", "linux/amd64/v3": "linux/amd64/v3",
	} {
		p, err := graph.ParsePlatform(in)
		if err != nil || graph.FormatPlatform(p) != want {
			t.Errorf("%s: %s, %v", in, graph.FormatPlatform(p), err)
		}
	}
	for _, bad := range []string{"", "/", "linux/", "toaster", "a/b/c/d", "linux/a b", "windows(1/amd64"} {
		if _, err := graph.ParsePlatform(bad); diag.KindOf(err) != diag.Invalid {
			t.Errorf("%q is accepted", bad)
		}
	}
}
