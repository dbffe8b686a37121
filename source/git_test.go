package source

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
)

// repo is a repository that a test makes.
type repo struct {
	t    *testing.T
	dir  string
	base string // of the server of it, once there is one
}

// backend serves the repositories in a directory.
func backend(t *testing.T, dir string) http.Handler {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	path := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, serr := os.Stat(path); err != nil || serr != nil {
		t.Skip("no git-http-backend")
	}
	return &cgi.Handler{Path: path, Env: []string{
		"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_CONFIG_KEY_1=uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1=true",
	}}
}

// url is the address of the repository on a server.
func (r *repo) url() string {
	r.t.Helper()
	if r.base == "" {
		srv := httptest.NewServer(backend(r.t, filepath.Dir(r.dir)))
		r.t.Cleanup(srv.Close)
		r.base = srv.URL
	}
	return r.base + "/" + filepath.Base(r.dir)
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	r := &repo{t: t, dir: filepath.Join(t.TempDir(), "repo")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git("init", "-q", "-b", "main")
	return r
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2020-01-01T00:00:00Z", "GIT_AUTHOR_DATE=2020-01-01T00:00:00Z", "GIT_CONFIG_GLOBAL=/dev/null", "HOME="+r.t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %s", args, out)
	}
	return strings.TrimSpace(string(out))
}

// input runs git with a text as its input.
func (r *repo) input(text string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=T", "-c", "user.email=t@example.com"}, args...)...)
	cmd.Dir, cmd.Stdin = r.dir, strings.NewReader(text)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %s", args, out)
	}
	return strings.TrimSpace(string(out))
}

func (r *repo) write(name, body string) {
	p := filepath.Join(r.dir, name)
	_ = os.MkdirAll(filepath.Dir(p), 0o755)
	if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) commit(msg string) string {
	r.git("add", "-A")
	r.git("commit", "-q", "-m", msg)
	return r.git("rev-parse", "HEAD")
}

// checkoutOf fetches and returns the layer's directory.
func (f *fixture) checkoutOf(g *Git, op *graph.Git) string {
	f.Helper()
	s, err := g.Fetch(f.Context(), op, "")
	if err != nil {
		f.Fatal(err)
	}
	return f.top(s)
}

func slurp(p ...string) string {
	b, err := os.ReadFile(filepath.Join(p...))
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func TestGit(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "first")
	r.write("sub/g", "below")
	if err := os.Symlink("sub", filepath.Join(r.dir, "link")); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink("/etc", filepath.Join(r.dir, "evil"))
	_ = os.Symlink("../../../..", filepath.Join(r.dir, "up"))
	first := r.commit("one")
	r.git("tag", "-a", "-m", "x", "v1")
	tag := r.git("rev-parse", "v1")
	r.git("update-ref", "refs/pull/7/head", first)
	r.write("f", "second")
	second := r.commit("two")
	p := NewPuller(f.store)
	git := func() *Git { return p.NewGit(f.env()) }

	for ref, want := range map[string]string{"": "second", "main": "second", "v1": "first", "refs/tags/v1": "first", first: "first", "pull/7/head": "first", "refs/heads/main": "second"} {
		dir := f.checkoutOf(git(), &graph.Git{Remote: r.url(), Ref: ref})
		if got := slurp(dir, "f"); got != want {
			t.Errorf("%q: %q", ref, got)
		}
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			t.Errorf("%q: .git is there", ref)
		}
	}
	for sub, want := range map[string]string{"sub": "below", "/sub/": "below", "link": "below"} {
		if got := slurp(f.checkoutOf(git(), &graph.Git{Remote: r.url(), Subdir: sub}), "g"); got != want {
			t.Errorf("%s: %q", sub, got)
		}
	}
	for _, sub := range []string{"evil", "none", "f"} {
		if _, err := git().Fetch(t.Context(), &graph.Git{Remote: r.url(), Subdir: sub}, ""); err == nil {
			t.Errorf("%s: no error", sub)
		}
	}
	for _, sub := range []string{"../..", "up", "up/up"} { // stay at the top
		if got := slurp(f.checkoutOf(git(), &graph.Git{Remote: r.url(), Subdir: sub}), "f"); got != "second" {
			t.Errorf("%s: %q", sub, got)
		}
	}
	for sum, ok := range map[string]bool{second[:8]: true, second: true, first: false} {
		_, err := git().Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "main", Checksum: sum})
		if (err == nil) != ok {
			t.Errorf("checksum %s: %v", sum, err)
		}
	}
	if _, err := git().Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "v1", Checksum: tag[:10]}); err != nil {
		t.Error(err)
	}
	dir := f.checkoutOf(git(), &graph.Git{Remote: r.url(), MTimeCommit: true})
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || !info.ModTime().Equal(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%v %v", info.ModTime(), err)
	}
	// One build sees one commit, whatever happens meanwhile.
	g := git()
	pin, err := g.Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "main"})
	if err != nil {
		t.Fatal(err)
	}
	r.write("f", "third")
	r.commit("three")
	r.git("commit", "-q", "--amend", "-m", "forced")
	if got := slurp(f.checkoutOf(g, &graph.Git{Remote: r.url(), Ref: "main"}), "f"); got != "second" {
		t.Errorf("after the pin: %q", got)
	}
	if later, err := git().Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "main"}); err != nil || later == pin {
		t.Error("the pin did not move", err)
	}
}

func TestGitKeepDirAndBundle(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	r.commit("one")
	r.write("f", "2")
	sha := r.commit("two")
	p := NewPuller(f.store)
	dir := f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url(), Ref: "main", KeepDir: true})
	in := &repo{t: t, dir: dir}
	if got := in.git("rev-parse", "HEAD"); got != sha {
		t.Errorf("HEAD is %s", got)
	}
	if got := in.git("status", "--porcelain"); got != "" {
		t.Errorf("status: %s", got)
	}
	if got := in.git("rev-parse", "--abbrev-ref", "HEAD", "refs/heads/main"); got != "HEAD\nmain" {
		t.Errorf("on %s", got)
	}
	_ = filepath.WalkDir(filepath.Join(dir, ".git"), func(p string, e fs.DirEntry, _ error) error {
		if e.Type().IsRegular() && strings.Contains(slurp(p), f.store.Root()) {
			t.Errorf("%s names the store", p)
		}
		return nil
	})
	dir = f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url(), Ref: "main", Bundle: true})
	clone := &repo{t: t, dir: t.TempDir()}
	clone.git("clone", "-q", "-b", "main", filepath.Join(dir, "bundle"), "x")
	if got := (&repo{t: t, dir: clone.dir + "/x"}).git("rev-list", "--count", "HEAD"); got != "2" {
		t.Errorf("%s commits", got)
	}
}

func TestGitSubmodules(t *testing.T) {
	f, r, m := setup(t), newRepo(t), newRepo(t)
	m.write("inner", "in")
	m.commit("m")
	r.write("f", "1")
	r.commit("one")
	r.git("submodule", "add", "-q", m.url(), "mod")
	r.commit("with module")
	p := NewPuller(f.store)
	dir := f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url()})
	if slurp(dir, "mod/inner") != "in" {
		t.Error("no submodule")
	}
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, _ error) error {
		if e.Name() == ".git" {
			t.Errorf("%s is left", p)
		}
		return nil
	})
	dir = f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url(), SkipSubmodules: true})
	if _, err := os.Stat(filepath.Join(dir, "mod/inner")); err == nil {
		t.Error("the submodule was not skipped")
	}
}

func TestGitRefuses(t *testing.T) {
	f := setup(t)
	g := NewPuller(f.store).NewGit(f.env())
	marker := filepath.Join(t.TempDir(), "owned")
	for _, op := range []*graph.Git{
		{Remote: "https://example.invalid/x", Ref: "--upload-pack=touch " + marker},
		{Remote: "https://example.invalid/x", Ref: "-x"},
		{Remote: "https://example.invalid/x", Ref: "a..b"},
		{Remote: "https://example.invalid/x", Ref: "a b"},
		{Remote: "--upload-pack=touch " + marker},
		{Remote: "ext::sh -c touch% " + marker},
		{Remote: "file:///etc"},
		{Remote: "/etc"},
		{Remote: "ssh://-oProxyCommand=touch/x"},
		{Remote: "ftp://example.invalid/x"},
	} {
		_, err := g.Pin(t.Context(), op)
		if k := diag.KindOf(err); err == nil || k != diag.Invalid && k != diag.Denied {
			t.Errorf("%+v: %v", op, err)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a command ran")
	}
	t.Setenv("PATH", "/nonexistent")
	_, err := g.Pin(t.Context(), &graph.Git{Remote: "https://example.invalid/x"})
	wantKind(t, err, diag.Unsupported, "git program", "install git")
}

func TestGitHTTP(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "private")
	first := r.commit("one")
	r.write("f", "public")
	r.commit("two")
	git := backend(t, filepath.Dir(r.dir))
	var authorized atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u, p, _ := req.BasicAuth(); u != "x-access-token" || p != "canary" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		authorized.Store(true)
		git.ServeHTTP(w, req)
	}))
	defer srv.Close()
	env := f.env()
	env.Session = client{secrets: map[string]string{"GIT_AUTH_TOKEN": "canary"}}
	op := &graph.Git{Remote: srv.URL + "/repo", AuthToken: "GIT_AUTH_TOKEN", AuthHeader: "GIT_AUTH_HEADER", KeepDir: true}
	p := NewPuller(f.store)
	if got := slurp(f.checkoutOf(p.NewGit(env), op), "f"); got != "public" || !authorized.Load() {
		t.Errorf("%q", got)
	}
	if got := slurp(f.checkoutOf(p.NewGit(env), &graph.Git{Remote: op.Remote, Ref: first, AuthToken: op.AuthToken}), "f"); got != "private" {
		t.Errorf("by commit: %q", got)
	}
	grep(t, f.store, "canary")
	_, err := p.NewGit(f.env()).Pin(t.Context(), op)
	wantKind(t, err, diag.Denied, srv.URL, "GIT_AUTH_TOKEN")
	_, err = p.NewGit(env).Pin(t.Context(), &graph.Git{Remote: op.Remote, Ref: "none", AuthToken: op.AuthToken})
	wantKind(t, err, diag.NotFound, "does not contain ref none")
}

func TestGitSignature(t *testing.T) {
	f, r := setup(t), newRepo(t)
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Skip("no ssh-keygen")
	}
	key := filepath.Join(t.TempDir(), "key")
	other := filepath.Join(t.TempDir(), "other")
	for _, k := range []string{key, other} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", k).CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
	}
	r.write("f", "1")
	unsigned := r.commit("one")
	r.write("f", "2")
	r.git("add", "-A")
	r.git("-c", "gpg.format=ssh", "-c", "user.signingkey="+key, "commit", "-q", "-S", "-m", "signed")
	p := NewPuller(f.store)
	good, bad := slurp(key+".pub"), slurp(other+".pub")
	r.git("-c", "gpg.format=ssh", "-c", "user.signingkey="+other, "tag", "-s", "-m", "tag", "v2")
	r.git("tag", "-a", "-m", "tag", "v3")
	fetch := func(ref string, v graph.GitVerify) error {
		s, err := p.NewGit(f.env()).Fetch(t.Context(), &graph.Git{Remote: r.url(), Ref: ref, Signature: &v}, "")
		if err == nil {
			s.Discard()
		}
		return err
	}
	for _, ok := range []struct {
		ref string
		v   graph.GitVerify
	}{
		{"main", graph.GitVerify{PubKey: good}},
		{"v2", graph.GitVerify{PubKey: bad, RequireSigned: true}},
		{"v2", graph.GitVerify{PubKey: good}},
		{"v2", graph.GitVerify{PubKey: good, IgnoreSignedTag: true}},
		{"v3", graph.GitVerify{PubKey: good}},
	} {
		if err := fetch(ok.ref, ok.v); err != nil {
			t.Error(ok.ref, err)
		}
	}
	wantKind(t, fetch("main", graph.GitVerify{PubKey: bad}), diag.Denied, "failed to verify ssh signature")
	wantKind(t, fetch("v2", graph.GitVerify{PubKey: bad, IgnoreSignedTag: true}), diag.Denied, "failed to verify ssh signature")
	wantKind(t, fetch("v2", graph.GitVerify{PubKey: good, RequireSigned: true}), diag.Denied, "failed to verify ssh signature")
	wantKind(t, fetch("main", graph.GitVerify{PubKey: good, RequireSigned: true}), diag.Denied, "no signed tag found")
	wantKind(t, fetch("main", graph.GitVerify{PubKey: "nonsense"}), diag.Invalid, "failed to parse ssh public key")
	wantKind(t, fetch(unsigned, graph.GitVerify{PubKey: good}), diag.Denied, "not signed")
}

func TestGitFromBundle(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	first := r.commit("one")
	r.write("f", "2")
	second := r.commit("two")
	file := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", "-q", file, "main")
	raw := []byte(slurp(file))
	desc := describeBytes("application/octet-stream", raw)
	ref, err := registry.ParseRef(f.host + "/bundles:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.Push(t.Context(), ref, registry.Upload{Desc: desc, Open: func(at int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw[at:])), nil
	}}); err != nil {
		t.Fatal(err)
	}
	p, env := NewPuller(f.store), f.env()
	env.Registry = f.client
	op := &graph.Git{Remote: "https://nowhere.invalid/x.git", Checksum: first, BundleFrom: "docker-image+blob://" + f.host + "/bundles@" + desc.Digest.String()}
	for sha, want := range map[string]string{first: "1", second: "2"} {
		op.Checksum = sha
		if got := slurp(f.checkoutOf(p.NewGit(env), op), "f"); got != want {
			t.Errorf("%s: %q", sha, got)
		}
	}
	op.Checksum = strings.Repeat("0", 40)
	_, err = p.NewGit(env).Fetch(t.Context(), op, "")
	wantKind(t, err, diag.NotFound, "has no commit")
	op.Checksum = first[:10]
	_, err = p.NewGit(env).Pin(t.Context(), op)
	wantKind(t, err, diag.Invalid, "full commit id")
	op.Checksum, op.Ref, op.KeepDir = second, "main", true
	in := &repo{t: t, dir: f.checkoutOf(p.NewGit(env), op)}
	if got := in.git("rev-parse", "refs/heads/main", "HEAD"); got != second+"\n"+second {
		t.Errorf("%s", got)
	}
	op.Checksum = first
	_, err = p.NewGit(env).Fetch(t.Context(), op, "")
	wantKind(t, err, diag.Invalid, "expected checksum to match")
}

// files serves a repository as mere files, as `git update-server-info` is for.
func (r *repo) files() string {
	r.git("update-server-info")
	srv := httptest.NewServer(http.FileServer(http.Dir(r.dir)))
	r.t.Cleanup(srv.Close)
	return srv.URL + "/.git"
}

func TestGitDumbServer(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		f, r, m := setup(t), newRepo(t), newRepo(t)
		if format == "sha256" {
			for _, x := range []*repo{r, m} {
				if err := os.RemoveAll(filepath.Join(x.dir, ".git")); err != nil {
					t.Fatal(err)
				}
				x.git("init", "-q", "-b", "main", "--object-format=sha256")
			}
		}
		m.write("inner", "in")
		m.commit("m")
		r.write("f", "1")
		r.git("submodule", "add", "-q", m.files(), "mod")
		first := r.commit("one")
		r.git("tag", "-a", "-m", "x", "v1")
		r.write("f", "2")
		second := r.commit("two")
		remote := r.files()
		p := NewPuller(f.store)
		for ref, want := range map[string]string{"": "2", "v1": "1", first: "1"} {
			for _, keep := range []bool{false, true} {
				dir := f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: remote, Ref: ref, KeepDir: keep})
				if got := slurp(dir, "f") + slurp(dir, "mod/inner"); got != want+"in" {
					t.Errorf("%s %q: %q", format, ref, got)
				}
			}
		}
		c, err := p.NewGit(f.env()).Meta(t.Context(), &graph.Git{Remote: remote}, true)
		if err != nil || c.Ref != "refs/heads/main" || c.ID != second || c.Commit != "" || c.TagObject != nil || !strings.Contains(string(c.CommitObject), "\n\ntwo") {
			t.Errorf("%+v %v", c, err)
		}
		c, err = p.NewGit(f.env()).Meta(t.Context(), &graph.Git{Remote: remote, Ref: "v1"}, true)
		if err != nil || c.Ref != "refs/tags/v1" || c.ID != r.git("rev-parse", "v1") || c.Commit != first || !strings.Contains(string(c.TagObject), "tag v1") || !strings.Contains(string(c.CommitObject), "\n\none") {
			t.Errorf("%+v %v", c, err)
		}
		// The id of a tag is as good as that of its commit.
		if got := slurp(f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: remote, Ref: c.ID}), "f"); got != "1" {
			t.Errorf("%q", got)
		}
	}
}

func TestGitAdvice(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	r.commit("one")
	for _, on := range []bool{false, true} {
		var said strings.Builder
		env := f.env()
		env.Progress = func(ev event.Event) {
			if ev.Kind == event.Log && ev.Vertex == "v" {
				said.Write(ev.Data)
			}
		}
		s, err := NewPuller(f.store).NewGit(env).Fetch(t.Context(), &graph.Git{Remote: r.url(), KeepDir: true, Advice: on}, "v")
		if err != nil {
			t.Fatal(err)
		}
		s.Discard()
		if strings.Contains(said.String(), "detached HEAD") != on {
			t.Errorf("%t: %q", on, said.String())
		}
	}
}

func TestGitChecksumKeepsIdentity(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	sha := r.commit("one")
	a, b := &graph.Git{Remote: r.url(), Ref: "main"}, &graph.Git{Remote: r.url(), Ref: "main", Checksum: sha}
	g := NewPuller(f.store).NewGit(f.env())
	pa, err := g.Pin(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	pb, err := g.Pin(t.Context(), b)
	if err != nil || pa != pb || string(graph.Canonical(a.Identity())) != string(graph.Canonical(b.Identity())) {
		t.Errorf("%s %s %v", pa, pb, err)
	}
	_, err = g.Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "main", Checksum: "foobar"})
	wantKind(t, err, diag.Invalid, "invalid checksum", "expected hex commit hash")
	_, err = g.Pin(t.Context(), &graph.Git{Remote: r.url(), Ref: "main", FetchByCommit: true})
	wantKind(t, err, diag.Invalid, "fetch-by-commit")
}

func TestGitRepositories(t *testing.T) {
	f, r, other := setup(t), newRepo(t), newRepo(t)
	for _, x := range []*repo{r, other} {
		x.write("f", "1")
		x.commit("one")
	}
	p := NewPuller(f.store)
	f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url()})
	f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: other.url()})
	all, err := p.Repositories()
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v %v", all, err)
	}
	old := time.Now().Add(-time.Hour)
	for _, x := range all {
		if x.Remote == other.url() {
			if err := os.Chtimes(filepath.Join(p.gitDir(""), x.ID), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	all, err = p.Repositories()
	if err != nil || len(all) != 2 || all[0].Remote != other.url() || all[1].Remote != r.url() || all[0].Size == 0 || all[0].InUse {
		t.Fatalf("%+v %v", all, err)
	}
	// One that is in use stays, and the oldest goes first.
	release, ok := p.locks.try("repository " + all[0].ID)
	if !ok {
		t.Fatal("it is not in use")
	}
	if err := p.TrimRepositories(t.Context(), "", share*all[0].Size); err != nil {
		t.Fatal(err)
	}
	left, err := p.Repositories()
	if err != nil || len(left) != 1 || left[0].ID != all[0].ID || !left[0].InUse {
		t.Fatalf("%+v %v", left, err)
	}
	release()
	f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url()})
	if err := p.TrimRepositories(t.Context(), "", share*all[1].Size); err != nil {
		t.Fatal(err)
	}
	left, err = p.Repositories()
	if err != nil || len(left) != 1 || left[0].Remote != r.url() {
		t.Fatalf("%+v %v", left, err)
	}
	// What is left of one that was being removed is no repository.
	if err := os.Remove(filepath.Join(p.gitDir(""), left[0].ID, "HEAD")); err != nil {
		t.Fatal(err)
	}
	if got := slurp(f.checkoutOf(p.NewGit(f.env()), &graph.Git{Remote: r.url()}), "f"); got != "1" {
		t.Error(got)
	}
}
