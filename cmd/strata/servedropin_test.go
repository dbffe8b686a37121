package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
)

// documented is the complete example of BuildKit's page on buildkitd.toml, with the parts that are comments there.
func documented(t *testing.T) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "docs", "buildkitd.toml.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```toml\n")
	text, _, _ = strings.Cut(text, "\n```")
	main, github, ok := strings.Cut(text, "# [cache.gha.sign]")
	if !ok {
		t.Fatal("the page has another form")
	}
	github = regexp.MustCompile(`(?m)^# ?`).ReplaceAllString("# [cache.gha.sign]"+github, "")
	return main + github + "\n"
}

// pemFiles writes a certificate that signs itself, and its key.
func pemFiles(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// logBuffer is a log that a test reads while the daemon writes it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// daemonLog runs the daemon in this process until it serves, and returns what it logged, or its error.
func daemonLog(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log logBuffer
	c := &cli{in: strings.NewReader(""), out: &log, err: &log, args: args}
	root := newRoot(c)
	root.SetArgs(args)
	root.SetOut(&log)
	root.SetErr(&log)
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	for {
		select {
		case err := <-done:
			return log.String(), err
		case <-time.After(5 * time.Millisecond):
			if strings.Contains(log.String(), "serving") {
				cancel()
				err := <-done
				return log.String(), err
			}
		}
	}
}

// The example of BuildKit's documentation starts the daemon. Each of its settings has an effect, or is warned about by its name.
func TestServeDocumentedConfig(t *testing.T) {
	dir := t.TempDir()
	text := documented(t)
	certificate, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pemFiles(t, certificate, key)
	for from, to := range map[string]string{
		"/var/lib/buildkit": filepath.Join(dir, "root"), "tcp://0.0.0.0:1234": "tcp://127.0.0.1:0", "/etc/buildkit/tls.crt": certificate, "/etc/buildkit/tls.key": key,
		"/etc/buildkit/tlsca.crt": certificate, "/etc/config/myca.pem": certificate, "/etc/config/key.pem": key, "/etc/config/cert.pem": certificate,
		"/etc/buildkit/provenance.d": dir,
	} {
		if !strings.Contains(text, from) {
			t.Errorf("the page has no %s any more", from)
		}
		text = strings.ReplaceAll(text, from, to)
	}
	file := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BUILDKITD_CONFIG", file)
	t.Setenv("STRATA_CONFIG", "")
	log, err := daemonLog(t, "serve", "--as-buildkitd", "--oci-worker-net", "none")
	if err != nil || !strings.Contains(log, "address=tcp://127.0.0.1:0") {
		t.Fatalf("the daemon: %v\n%s", err, log)
	}
	var all map[string]any
	if err := toml.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	flat := map[string]any{}
	flatten("", all, flat)
	const effect = `^(root|insecure-entitlements|proxyNetwork|provenanceEnvDir|log\..*|dns\..*|grpc\.(address|uid|gid|tls\..*)|cdi\..*|history\..*|registry\..*|frontend\..*|` +
		`cache\.gha\.verify\.required|worker\.oci\.(enabled|snapshotter|rootless|noProcessSandbox|gc|reservedSpace|maxUsedSpace|minFreeSpace|binary|apparmor-profile|` +
		`max-parallelism|cniPoolSize|labels\..*|gcpolicy))$`
	has := regexp.MustCompile(effect)
	if len(flat) < 60 {
		t.Errorf("only %d settings were found", len(flat))
	}
	for name := range flat {
		if told := strings.Contains(log, "setting="+name+" "); told == has.MatchString(name) {
			t.Errorf("%s: warned about: %v", name, told)
		}
	}
	if strings.Contains(log, "unknown") {
		t.Errorf("a setting of BuildKit is unknown:\n%s", log)
	}
}

// What the daemon does not know is a warning that names what was probably meant; a wrong value is an error.
func TestServeUnknownSettings(t *testing.T) {
	for text, want := range map[string]string{
		"[compation]\nenabled = true":                `msg="unknown setting" setting=compation`,
		"[dns]\nnameserver = []":                     `setting=dns.nameserver place=`,
		"[dns]\nnameserver = [ ]":                    `hint="did you mean dns.nameservers?"`,
		"[worker.oci]\nmax-paralelism = 3":           `hint="did you mean worker.oci.max-parallelism?"`,
		"[[worker.oci.gcpolicy]]\nkeepDuratoin = 3":  `hint="did you mean worker.oci.gcpolicy.keepDuration?"`,
		"[registry.\"r\"]\nmirors = []":              `setting=registry.r.mirors`,
		"[otel]\nendpoint = 3\n[x.y]\nz = 1":         `setting=x`,
		"[compaction]\nenabled = true":               `setting=compaction.enabled why=`,
		"[cache.gha.sign]\ncommand = \"cosign\"":     `setting=cache.gha.sign.command why=`,
		"[worker.containerd]\nnamespace = \"b\"":     `setting=worker.containerd.namespace why=`,
		"[worker.oci]\nsnapshotter = \"native\"":     `setting=worker.oci.snapshotter why=`,
		"[worker.oci]\nrootless = true":              `setting=worker.oci.rootless why=`,
		"[worker.oci]\ndefaultCgroupParent = \"/b\"": `setting=worker.oci.defaultCgroupParent why=`,
		"[system]\nsessionAuthTimeout = \"90s\"":     `setting=system.sessionAuthTimeout why=`,
		"[grpc]\nuid = 1000":                         `setting=grpc.uid why=`,
		"[worker.oci]\nenabled = false\n[worker.containerd]\nenabled = true\nrootless = true": `setting=worker.containerd.rootless why=`,
	} {
		if _, _, _, log, err := configured(t, text+"\n"); err != nil || !strings.Contains(log, want) {
			t.Errorf("%q: %v\n%s", text, err, log)
		}
	}
	for text, want := range map[string]string{
		"[compaction]\nenabled = \"ja\"":           "the configuration",
		"[compaction]\nidleTimeout = \"soon\"":     "compaction.idleTimeout",
		"[worker.oci]\nreservedSpace = \"much\"":   "invalid disk space",
		"[worker.oci]\nmaxUsedSpace = \"200%\"":    "invalid disk space",
		"[system]\nmaxRegistryConcurrency = 0":     "greater than zero",
		"[worker.oci]\nmax-parallelism = \"four\"": "the configuration",
		"[registry.\"r\"]\nhttp = \"yes\"":         "the configuration",
		"[worker.containerd]\nenabled = \"true\"":  "the configuration",
	} {
		if _, _, _, _, err := configured(t, text+"\n"); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Where containerd is the only worker that is enabled, its settings are those of the worker.
func TestServeContainerdWorker(t *testing.T) {
	_, _, v, log, err := configured(t, "[worker.oci]\nenabled = false\nmax-parallelism = 9\n[worker.containerd]\nenabled = true\nmax-parallelism = 3\nmaxUsedSpace = 700\n[worker.containerd.labels]\na = \"b\"\n")
	if err != nil || v.parallel != 3 || !reflect.DeepEqual(v.labels, []string{"a=b"}) || v.gc.MaxUsed.Bytes != 700 {
		t.Errorf("%+v %v", v, err)
	}
	if !strings.Contains(log, "setting=worker.oci.max-parallelism") || strings.Contains(log, "setting=worker.containerd.max-parallelism") {
		t.Error(log)
	}
}

// Flags of buildkitd that mean nothing here, and flags that nothing has, do not stop the daemon.
func TestServeForeignFlags(t *testing.T) {
	serve := newServe(&cli{})
	argv := []string{
		"--containerd-worker=true", "--containerd-worker-addr", "/run/c.sock", "--containerd-worker-gc", "--containerd-worker-labels", "a=b", "--containerd-worker-labels=c=d",
		"--containerd-cni-pool-size", "3", "--oci-worker", "false", "--oci-worker-platform", "linux/amd64", "--oci-worker-gc=false", "--oci-worker-gc-keepstorage", "100,200,300",
		"--rootless=false", "--trace", "--adr", "unix:///x", "--no-such-thing", "--oci-max-paralelism=4", "--log-format", "json",
	}
	if err := serve.ParseFlags(argv); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	logAll(slog.New(slog.NewTextHandler(&told, nil)), warnOfFlags(serve.Flags(), append([]string{"serve"}, argv...)))
	for _, want := range []string{
		"flag=--containerd-worker why", "flag=--containerd-worker-addr why", "flag=--containerd-worker-labels", "flag=--containerd-cni-pool-size", `msg="unknown flag" flag=--no-such-thing`,
		`flag=--adr hint="did you mean --addr?"`, `flag=--oci-max-paralelism hint="did you mean --oci-max-parallelism?"`, "flag=--oci-worker-platform",
	} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("no %s in\n%s", want, told.String())
		}
	}
	if n := strings.Count(told.String(), "unknown flag"); n != 3 || strings.Contains(told.String(), "rootless") {
		t.Errorf("%d unknown flags:\n%s", n, told.String())
	}
	if err := newServe(&cli{}).ParseFlags([]string{"--oci-max-parallelism", "many"}); err == nil {
		t.Error("a wrong value is no error")
	}
	if err := newServe(&cli{}).ParseFlags([]string{"--oci-worker-gc-keepstorage", "much"}); err == nil {
		t.Error("a wrong size is no error")
	}
}

func TestServeLog(t *testing.T) {
	warn := func(v *serving, debug bool, text string) string {
		t.Helper()
		conf, _, _, _, err := configured(t, text)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		log, err := v.logging(debug, conf).logger(&out)
		if err != nil {
			return err.Error()
		}
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		return out.String()
	}
	check := func(what, got string, want ...string) {
		t.Helper()
		if lines := strings.Count(got, "\n"); lines != len(want) {
			t.Errorf("%s: %q", what, got)
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %s in %q", what, w, got)
			}
		}
	}
	check("nothing", warn(&serving{}, false, ""), "msg=i", "msg=w")
	check("[log]", warn(&serving{}, false, "[log]\nlevel = \"warn\"\nformat = \"json\"\n"), `"level":"warning","msg":"w"`)
	check("debug", warn(&serving{}, false, "debug = true\n"), "msg=d", "msg=i", "msg=w")
	check("--debug", warn(&serving{}, true, "[log]\nlevel = \"warn\"\n"), "msg=d", "msg=i", "msg=w")
	check("--log-level", warn(&serving{log: logConfig{Level: "debug", Format: "text"}}, false, "[log]\nlevel = \"warn\"\nformat = \"json\"\n"), "msg=d", "msg=i", "msg=w")
	t.Setenv("BUILDKITD_LOG_LEVEL", "error")
	check("the variable", warn(&serving{}, true, "[log]\nlevel = \"debug\"\n"))
	check("a flag over the variable", warn(&serving{log: logConfig{Level: "info"}}, false, ""), "msg=i", "msg=w")
	t.Setenv("BUILDKITD_LOG_LEVEL", "loud")
	if got := warn(&serving{}, false, ""); !strings.Contains(got, `unsupported log level "loud"`) {
		t.Error(got)
	}
	if got := warn(&serving{log: logConfig{Level: "info", Format: "xml"}}, false, ""); !strings.Contains(got, `unsupported log format "xml"`) {
		t.Error(got)
	}
}

func TestServeConfigPath(t *testing.T) {
	for _, c := range []struct {
		buildkit, strata string
		as               bool
		want             string
	}{
		{"", "", false, "own"},
		{"", "", true, "/etc/buildkit/buildkitd.toml"},
		{"/b", "", true, "/b"},
		{"/b", "", false, "/b"},
		{"/b", "/s", false, "own"},
		{"", "/s", true, "own"},
		{"/b", "/s", true, "/b"},
	} {
		t.Setenv("BUILDKITD_CONFIG", c.buildkit)
		t.Setenv("STRATA_CONFIG", c.strata)
		got, variable := (&serving{asBuildKit: c.as}).configPath("own")
		if got != c.want || (variable != "") != (got == "/b") {
			t.Errorf("%+v: %s of %q", c, got, variable)
		}
	}
}

func TestServeGCRules(t *testing.T) {
	rules := func(text string) ([]buildkit.GCRule, int64) {
		t.Helper()
		_, _, v, _, err := configured(t, text)
		if err != nil {
			t.Fatal(err)
		}
		got, most, err := v.gc.rules()
		if err != nil {
			t.Fatal(err)
		}
		return got, most
	}
	size := func(n int64) buildkit.Space { return buildkit.Space{Bytes: n} }
	got, most := rules("[[worker.oci.gcpolicy]]\nreservedSpace = \"512MB\"\nmaxUsedSpace = \"1GB\"\nminFreeSpace = \"10%\"\nkeepDuration = \"48h\"\nfilters = [\"type==source.local\"]\n" +
		"[[worker.oci.gcpolicy]]\nall = true\nkeepBytes = 1024\nkeepDuration = 60\n[[worker.oci.gcpolicy]]\nmaxUsedSpace = 5000\n")
	want := []buildkit.GCRule{
		{Filters: []string{"type==source.local"}, KeepDuration: 48 * time.Hour, Reserved: size(512 << 20), MaxUsed: size(1 << 30), MinFree: buildkit.Space{Percent: 10}},
		{All: true, KeepDuration: time.Minute, Reserved: size(1024)},
		{MaxUsed: size(5000)},
	}
	if !reflect.DeepEqual(got, want) || most != 5000 {
		t.Errorf("%+v %d", got, most)
	}
	got, most = rules("[worker.oci]\nreservedSpace = 10\nmaxUsedSpace = \"60%\"\nminFreeSpace = 30\n")
	all := buildkit.GCRule{All: true, Reserved: size(10), MaxUsed: buildkit.Space{Percent: 60}, MinFree: size(30)}
	if len(got) != 4 || !reflect.DeepEqual(got[3], all) || got[1].KeepDuration != 60*24*time.Hour || len(got[0].Filters) != 3 || most != -1 {
		t.Errorf("%+v %d", got, most)
	}
	if got, most = rules("[worker.oci]\ngckeepstorage = 10\n"); len(got) != 4 || got[2].Reserved != size(10) || most != -1 {
		t.Errorf("%+v %d", got, most)
	}
	if got, most = rules("[worker.oci]\ngc = false\nmaxUsedSpace = 3\n"); len(got) != 0 || most != -1 {
		t.Errorf("%+v %d", got, most)
	}
	if got, most = rules(""); len(got) != 0 || most != 0 {
		t.Errorf("%+v %d", got, most)
	}
	v := &serving{}
	for _, bad := range []string{"keepDuration = \"soon\"", "filters = [\"nothing==x\"]"} {
		conf, _, _, _, err := configured(t, "[[worker.oci.gcpolicy]]\n"+bad+"\n")
		if err != nil {
			t.Fatal(err)
		}
		v.gc = gcConfig{}
		v.gc.under(&conf.Worker.OCI.gcConfig)
		if _, _, err := v.gc.rules(); diag.KindOf(err) != diag.Invalid || !strings.Contains(fmt.Sprint(err), "gcpolicy 1") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// The flags of collection go before the file.
func TestServeGCFlags(t *testing.T) {
	var c gcConfig
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	gcFlags(fs, &c)
	if err := fs.Parse([]string{"--oci-worker-gc=false", "--oci-worker-gc-keepstorage", "100,20%,300"}); err != nil {
		t.Fatal(err)
	}
	c.under(&gcConfig{Reserved: diskSpace{buildkit.Space{Bytes: 1}}})
	if c.GC == nil || *c.GC || c.Reserved.Bytes != 100_000_000 || c.MinFree.Percent != 20 || c.MaxUsed.Bytes != 300_000_000 {
		t.Errorf("%+v", c)
	}
}
