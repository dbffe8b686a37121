package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/registry"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/store"
)

// private is a repository that only readers with a token may see.
func private(t *testing.T) (r *repo, remote string, env func(*fixture) Env) {
	t.Helper()
	r = newRepo(t)
	r.write("f", "PRIVATE-CANARY")
	git := backend(t, filepath.Dir(r.dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, p, _ := req.BasicAuth(); p != "token" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		git.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	return r, srv.URL + "/repo", func(f *fixture) Env {
		e := f.env()
		e.Session = client{secrets: map[string]string{"GIT_AUTH_TOKEN": "token"}}
		return e
	}
}

// rawCommit commits a tree that git add would not make: entries are those of git mktree, "blob" contents by name.
func (r *repo) rawCommit(entries ...[3]string) {
	r.t.Helper()
	var tree strings.Builder
	for _, e := range entries {
		mode, name, body := e[0], e[1], e[2]
		switch mode {
		case "160000":
			tree.WriteString(mode + " commit " + body + "\t" + name + "\n")
		case "040000":
			tree.WriteString(mode + " tree " + body + "\t" + name + "\n")
		default:
			tree.WriteString(mode + " blob " + r.input(body, "hash-object", "-w", "--stdin") + "\t" + name + "\n")
		}
	}
	id := r.input(tree.String(), "mktree", "--missing")
	r.git("update-ref", "refs/heads/main", r.input("raw", "commit-tree", id))
}

// A submodule of a repository on the network must not be read from this machine, by whatever spelling.
func TestAttackGitSubmoduleOnTheHost(t *testing.T) {
	secret := newRepo(t)
	secret.write("inner", "HOST-CANARY")
	sha := secret.commit("host")
	secret.git("bundle", "create", "-q", filepath.Join(filepath.Dir(secret.dir), "b.bundle"), "HEAD", "main")
	marker := filepath.Join(t.TempDir(), "owned")
	for _, url := range []string{
		secret.dir, "file://" + secret.dir, "file:" + secret.dir, secret.dir + "/.git", "FILE://" + secret.dir, "file://localhost" + secret.dir,
		filepath.Join(filepath.Dir(secret.dir), "b.bundle"), "./../../../../../../../../../.." + secret.dir,
		"ext::sh -c touch% " + marker, "fd::0", "-u" + secret.dir, "--upload-pack=touch " + marker, "ssh://-oProxyCommand=touch%20" + marker + "/x",
	} {
		f, r := setup(t), newRepo(t)
		r.rawCommit([3]string{"100644", ".gitmodules", "[submodule \"mod\"]\n\tpath = mod\n\turl = \"" + url + "\"\n"}, [3]string{"160000", "mod", sha})
		s, err := NewPuller(f.store).NewGit(f.env()).Fetch(t.Context(), &graph.Git{Remote: r.url(), Ref: "main"}, "")
		if err == nil {
			if body := slurp(f.top(s), "mod/inner"); strings.Contains(body, "CANARY") {
				t.Errorf("%s: a repository of the host was read", url)
			}
		}
		grep(t, f.store, "HOST-CANARY")
		if _, err := os.Stat(marker); err == nil {
			t.Fatalf("%s: a command ran", url)
		}
	}
}

// .gitmodules, names, paths and links of a hostile repository neither run programs nor write outside of the checkout.
func TestAttackGitHostileTree(t *testing.T) {
	mod := newRepo(t)
	mod.write("inner", "in")
	sha := mod.commit("m")
	dir := t.TempDir()
	marker := filepath.Join(dir, "owned")
	modules := func(name, path, extra string) [3]string {
		return [3]string{"100644", ".gitmodules", "[submodule \"" + name + "\"]\n\tpath = \"" + path + "\"\n\turl = " + mod.url() + "\n" + extra}
	}
	link := [3]string{"160000", "mod", sha}
	for name, entries := range map[string][][3]string{
		"update command":       {modules("mod", "mod", "\tupdate = \"!touch "+marker+"\"\n"), link},
		"name outside":         {modules("../../../../../../../../../.."+marker, "mod", ""), link},
		"path outside":         {modules("mod", "../../../../../../../../../.."+marker, ""), link},
		"path is an option":    {modules("mod", "--upload-pack=touch "+marker, ""), link},
		"path in .git":         {modules("mod", ".git/hooks", ""), link},
		"symlinked modules":    {{"120000", ".gitmodules", "evil"}, {"100644", "evil", "[submodule \"mod\"]\n\tpath = mod\n\turl = " + mod.url() + "\n"}, link},
		"symlink below a path": {modules("x/y", "A/sub", ""), {"120000", "A", dir}, link},
		"fsmonitor in config":  {modules("mod", "mod", "[core]\n\tfsmonitor = touch "+marker+"\n\tsshCommand = touch "+marker+"\n"), link},
		"filter": {
			{"100644", ".gitattributes", "* filter=evil diff=evil merge=evil\n"},
			{"100644", ".lfsconfig", "[lfs]\n\turl = file://" + dir + "\n"},
			{"100644", "x", "data"},
		},
		"file named .git":  {{"100644", ".git", "gitdir: " + dir}, {"100644", "x", "data"}},
		"file named .GIT ": {{"120000", ".GIT", dir}, {"100644", "x", "data"}},
		"name with dots":   {{"120000", "..", dir}, {"100644", "x", "data"}},
	} {
		for _, keep := range []bool{false, true} {
			f, r := setup(t), newRepo(t)
			r.rawCommit(entries...)
			_, _ = NewPuller(f.store).NewGit(f.env()).Fetch(t.Context(), &graph.Git{Remote: r.url(), Ref: "main", KeepDir: keep}, "")
			found, err := os.ReadDir(dir)
			if err != nil || len(found) != 0 {
				t.Fatalf("%s, keep %t: %v was written outside of the checkout (%v)", name, keep, found, err)
			}
		}
	}
}

// The machine's ssh keys and configuration are not the builds': a submodule that is reached by ssh gets neither, and the
// client's agent only if the repository itself is reached so.
func TestAttackGitSubmoduleUsesTheMachinesSSH(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\necho \"ssh ran: $*\" $(env) >&2\nexit 255\n" // it cannot write elsewhere
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	f, r := setup(t), newRepo(t)
	r.rawCommit([3]string{"100644", ".gitmodules", "[submodule \"mod\"]\n\tpath = mod\n\turl = ssh://git@host.invalid/x.git\n"},
		[3]string{"160000", "mod", strings.Repeat("1", 40)})
	url := r.url()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("SSH_AUTH_SOCK", "/MACHINE-AGENT")
	t.Setenv("GIT_SSH_COMMAND", "ssh -i /MACHINE-KEY")
	env := f.env()
	env.Session = client{ssh: func() (io.ReadWriteCloser, error) { return struct{ io.ReadWriteCloser }{}, nil }}
	said := func(err error) string {
		t.Helper()
		var e *diag.Error
		if !errors.As(err, &e) {
			t.Fatalf("there is no such repository: %v", err)
		}
		return strings.Join(e.Log, "\n")
	}
	_, err := NewPuller(f.store).NewGit(env).Fetch(t.Context(), &graph.Git{Remote: url}, "")
	got := said(err)
	for _, want := range []string{"-F /dev/null", "-o IdentityFile=none", "-o IdentityAgent=none", "-o BatchMode=yes"} {
		if !strings.Contains(got, want) {
			t.Errorf("ssh ran without %s:\n%s", want, got)
		}
	}
	for _, not := range []string{"MACHINE-", "SSH_AUTH_SOCK="} {
		if strings.Contains(got, not) {
			t.Errorf("ssh got %s:\n%s", not, got)
		}
	}
	_, err = NewPuller(f.store).NewGit(env).Pin(t.Context(), &graph.Git{Remote: "git@host.invalid:x.git"})
	if got = said(err); !strings.Contains(got, "IdentityFile=none") || strings.Contains(got, "IdentityAgent=none") || strings.Contains(got, "MACHINE-") || !strings.Contains(got, "SSH_AUTH_SOCK=") {
		t.Errorf("%v:\n%s", err, got)
	}
}

// Whoever knows the id of a commit that another build has fetched does not get it without a login of his own.
func TestAttackGitCommitOfAnotherLogin(t *testing.T) {
	f := setup(t)
	r, remote, env := private(t)
	sha := r.commit("one")
	p := NewPuller(f.store)
	if got := slurp(f.checkoutOf(p.NewGit(env(f)), &graph.Git{Remote: remote, Ref: sha, AuthToken: "GIT_AUTH_TOKEN"}), "f"); got != "PRIVATE-CANARY" {
		t.Fatal(got)
	}
	for _, op := range []*graph.Git{
		{Remote: remote, Ref: sha},
		{Remote: remote, Ref: "main", Checksum: sha, FetchByCommit: true},
		{Remote: strings.Replace(remote, "http://", "http://user:wrong@", 1), Ref: sha},
		{Remote: strings.Replace(remote, "/repo", "//./repo", 1), Ref: sha},
	} {
		_, err := p.NewGit(f.env()).Pin(t.Context(), op)
		wantKind(t, err, diag.Denied, "ls-remote")
		if s, err := p.NewGit(f.env()).Fetch(t.Context(), op, ""); err == nil {
			t.Errorf("%+v: %s", op, slurp(f.top(s), "f"))
		}
		if _, err := p.NewGit(f.env()).Meta(t.Context(), op, true); err == nil {
			t.Errorf("%+v: the commit was told", op)
		}
	}
	// The owner of the state needs no login, and no network, for what is his.
	mine := f.env()
	mine.Client.Owner = true
	if got := slurp(f.checkoutOf(p.NewGit(mine), &graph.Git{Remote: remote, Ref: sha}), "f"); got != "PRIVATE-CANARY" {
		t.Error(got)
	}
}

// A bundle that is said to be of a private repository does not open what is kept of the repository.
func TestAttackGitBundleNamesPrivateRemote(t *testing.T) {
	f := setup(t)
	r, remote, env := private(t)
	sha := r.commit("one")
	p := NewPuller(f.store)
	f.checkoutOf(p.NewGit(env(f)), &graph.Git{Remote: remote, Ref: "main", AuthToken: "GIT_AUTH_TOKEN"})
	other := newRepo(t)
	other.write("f", "other")
	other.commit("x")
	file := filepath.Join(t.TempDir(), "b")
	other.git("bundle", "create", "-q", file, "main")
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
	op := &graph.Git{Remote: remote, Checksum: sha, BundleFrom: "docker-image+blob://" + f.host + "/bundles@" + desc.Digest.String()}
	_, err = p.NewGit(f.env()).Fetch(t.Context(), op, "")
	wantKind(t, err, diag.NotFound, "has no commit")
}

// A login is for the host that it was given for. A server that sends readers elsewhere does not take it along.
func TestAttackGitRedirectTakesLogin(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	sha := r.commit("one")
	git := backend(t, filepath.Dir(r.dir))
	var mu sync.Mutex
	var leaked []string
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if a := req.Header.Get("Authorization"); a != "" {
			mu.Lock()
			leaked = append(leaked, req.Method+" "+a)
			mu.Unlock()
		}
		git.ServeHTTP(w, req)
	}))
	defer thief.Close()
	honest := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if old, ok := strings.CutPrefix(req.URL.Path, "/old"); ok { // a move on the same server keeps the login
			http.Redirect(w, req, old+"?"+req.URL.RawQuery, http.StatusMovedPermanently)
			return
		}
		if _, p, _ := req.BasicAuth(); p != "token" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasPrefix(req.URL.Path, "/away") {
			http.Redirect(w, req, thief.URL+"/repo"+strings.TrimPrefix(req.URL.Path, "/away")+"?"+req.URL.RawQuery, http.StatusFound)
			return
		}
		git.ServeHTTP(w, req)
	}))
	defer honest.Close()
	for _, path := range []string{"/away", "/old/repo", "/repo"} {
		for _, ref := range []string{"", sha} {
			env := f.env()
			env.Session = client{secrets: map[string]string{"GIT_AUTH_TOKEN": "token"}}
			op := &graph.Git{Remote: honest.URL + path, Ref: ref, AuthToken: "GIT_AUTH_TOKEN"}
			if got := slurp(f.checkoutOf(NewPuller(f.store).NewGit(env), op), "f"); got != "1" {
				t.Errorf("%s: %q", path, got)
			}
		}
	}
	if len(leaked) > 0 {
		t.Errorf("the login went to another host: %q", leaked)
	}
}

// Neither the configuration nor the environment of the machine reaches git.
func TestAttackGitMachineConfiguration(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write(".gitattributes", "* filter=evil\n")
	r.write("f", "1")
	r.commit("one")
	url := r.url()
	home, marker := t.TempDir(), filepath.Join(t.TempDir(), "owned")
	config := "[core]\n\tfsmonitor = touch " + marker + "\n\tsshCommand = touch " + marker + "\n\thooksPath = " + home + "/hooks\n[url \"file:///\"]\n\tinsteadOf = http://\n" +
		"[filter \"evil\"]\n\tsmudge = touch " + marker + "\n[credential]\n\thelper = \"!touch " + marker + "\"\n[protocol \"file\"]\n\tallow = always\n"
	hook := filepath.Join(home, "hooks", "post-checkout")
	if err := os.Mkdir(filepath.Dir(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	for p, body := range map[string]string{hook: "#!/bin/sh\ntouch " + marker + "\n", filepath.Join(home, ".gitconfig"): config, filepath.Join(home, "attributes"): "* filter=evil\n"} {
		if err := os.WriteFile(p, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": home, "GIT_CONFIG_GLOBAL": home + "/.gitconfig", "GIT_CONFIG_SYSTEM": home + "/.gitconfig",
		"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": "touch " + marker,
		"GIT_CONFIG_PARAMETERS": "'core.fsmonitor'='touch " + marker + "'", "GIT_SSH_COMMAND": "touch " + marker, "GIT_PROXY_COMMAND": "touch " + marker,
		"GIT_ASKPASS": "touch " + marker, "GIT_EXTERNAL_DIFF": "touch " + marker, "GIT_ALTERNATE_OBJECT_DIRECTORIES": home, "GIT_ALLOW_PROTOCOL": "file:ext",
		"GIT_TEMPLATE_DIR": home, "GIT_EXEC_PATH": home, "GIT_DIR": home,
	} {
		t.Setenv(k, v)
	}
	for _, keep := range []bool{false, true} {
		if got := slurp(f.checkoutOf(NewPuller(f.store).NewGit(f.env()), &graph.Git{Remote: url, KeepDir: keep}), "f"); got != "1" {
			t.Error(got)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a command of the machine's configuration ran")
	}
}

// What a server says of its refs is not taken for names of files or options.
func TestAttackGitEvilHeadSymref(t *testing.T) {
	sha := strings.Repeat("a", 40)
	for _, target := range []string{"--upload-pack=x", "-x", "../../../etc/x", "refs/heads/../../config", "refs/heads/a b", "/etc/passwd", "refs/heads/x:refs/heads/y", "refs/heads/*", "refs/heads/a\x7f"} {
		c := chooseRef("ref: "+target+"\tHEAD\n"+sha+"\tHEAD\n", "")
		if c == nil || c.sha != sha || c.ref != "HEAD" {
			t.Errorf("%q: %+v", target, c)
		}
	}
	for _, ref := range []string{"-x", "--exec=x", "a..b", "a:b", "a*", "a?", "a[b", "a~1", "a^{}", "@{u}", "a b", "a\nb", "/x", `a\b`} {
		if err := checkRef(ref); diag.KindOf(err) != diag.Invalid || err == nil {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// A subdirectory of a checkout stays in it, through links and dots.
func TestAttackGitSubdirEscape(t *testing.T) {
	f, r := setup(t), newRepo(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "canary"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.write("d/f", "1")
	for name, to := range map[string]string{"abs": outside, "root": "/", "up": "../../../../../../../../../..", "d/up": "../../../../../../../../../..", "proc": "/proc/self/root", "cwd": "/proc/self/cwd"} {
		if err := os.Symlink(to, filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.commit("one")
	p := NewPuller(f.store)
	for _, sub := range []string{"abs", "root" + outside, "up" + outside, "d/up" + outside, "../../.." + outside, "d/../.." + outside, "proc" + outside, "cwd/.git", ".git", "d/../.git/hooks", "abs/..", "root/etc"} {
		s, err := p.NewGit(f.env()).Fetch(context.Background(), &graph.Git{Remote: r.url(), Subdir: sub}, "")
		if err != nil {
			continue
		}
		for _, name := range []string{"canary", "passwd", "HEAD", "config"} {
			if _, err := os.Lstat(filepath.Join(f.top(s), name)); err == nil {
				t.Errorf("%s: %s is in the layer", sub, name)
			}
		}
	}
}

// A client's git does not end, because its agent or its login is of a kind that never answers. Another client's git of the same remote
// does not wait for it. What is kept of a remote belongs to the client, and is removed for its own sake.
func TestAttackGitThatNeverEnds(t *testing.T) {
	f, r := setup(t), newRepo(t)
	r.write("f", "1")
	r.commit("one")
	git := backend(t, filepath.Dir(r.dir))
	stuck := make(chan struct{}, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(body))
		if _, p, _ := req.BasicAuth(); p == "never" || p == "never fetch" && bytes.Contains(body, []byte("command=fetch")) {
			stuck <- struct{}{}
			<-req.Context().Done()
			return
		}
		git.ServeHTTP(w, req)
	}))
	defer srv.Close()
	p := NewPuller(f.store)
	of := func(user, token string) *Git {
		env := f.env()
		env.Client = session.Client{Tenant: user, Name: user}
		env.Session = client{secrets: map[string]string{"GIT_AUTH_TOKEN": token}}
		return p.NewGit(env)
	}
	op := &graph.Git{Remote: srv.URL + "/repo", Ref: "main", AuthToken: "GIT_AUTH_TOKEN"}
	for _, token := range []string{"never", "never fetch"} {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = of("user 1", token).Fetch(ctx, op, "") })
		<-stuck
		ctx2, done := context.WithTimeout(t.Context(), time.Minute)
		if _, err := of("user 2", "").Fetch(ctx2, op, ""); err != nil {
			t.Errorf("%s: %v", token, err)
		}
		done()
		cancel()
		wg.Wait()
	}
	f.checkoutOf(of("user 1", ""), op)
	all, err := p.Repositories()
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for user := range map[string]bool{"user 1": true, "user 2": true} {
		if !slices.ContainsFunc(all, func(r Repository) bool { return r.Tenant == user && r.Remote == srv.URL+"/repo" && r.Size > 0 }) {
			t.Errorf("%s has no repository: %+v", user, all)
		}
		if n := store.DiskUsage(t.Context(), f.store.OwnerDir(user)); n == 0 {
			t.Errorf("the repository of %s does not count for it", user)
		}
	}
	if err := p.TrimRepositories(t.Context(), "user 1", 1); err != nil {
		t.Fatal(err)
	}
	if left, err := p.Repositories(); err != nil || len(left) != 1 || left[0].Tenant != "user 2" {
		t.Errorf("%+v, %v", left, err)
	}
}
