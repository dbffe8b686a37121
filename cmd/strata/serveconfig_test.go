package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/sandbox"
)

// configured reads a configuration and puts flags over it.
func configured(t *testing.T, text string, flags ...string) (conf *serveConfig, c *cli, v *serving, log string, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "buildkitd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var told bytes.Buffer
	conf, warnings, err := loadServeConfig(path)
	if err != nil {
		return nil, nil, nil, "", err
	}
	logAll(slog.New(slog.NewTextHandler(&told, nil)), warnings)
	c, v = &cli{}, &serving{}
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	fs.StringVar(&c.root, "root", "", "")
	fs.StringArrayVar(&v.addresses, "addr", nil, "")
	networkFlags(fs, &v.net, &v.devices)
	if err := fs.Parse(flags); err != nil {
		t.Fatal(err)
	}
	conf.apply(c, v, fs)
	return conf, c, v, told.String(), nil
}

func TestServeConfigOfSteps(t *testing.T) {
	conf, c, v, log, err := configured(t, `
root = "/srv/strata"
proxyNetwork = true
insecure-entitlements = ["network.host"]
[worker.oci]
networkMode = "cni"
cniConfigPath = "/etc/net.conflist"
cniBinaryPath = "/srv/cni"
cniPoolSize = 3
bridgeSubnet = "10.9.0.0/24"
max-parallelism = 5
binary = "crun"
[worker.oci.labels]
site = "here"
[dns]
nameservers = ["192.0.2.1"]
searchDomains = ["example.com"]
options = ["edns0"]
[cdi]
specDirs = ["/srv/cdi"]
autoAllowed = ["vendor.com/class"]
`)
	if err != nil || log != "" {
		t.Fatal(err, log)
	}
	if c.root != "/srv/strata" || c.runtime != "crun" || !v.proxied || v.parallel != 5 || !slices.Equal(v.labels, []string{"site=here"}) || !slices.Equal(v.entitlements, []string{"network.host"}) {
		t.Errorf("%+v %+v", c, v)
	}
	net, err := v.net.network(conf.DNS)
	want := engine.NetworkConfig{
		Mode: sandbox.CNI, Idle: 3, CNI: sandbox.CNIConfig{Config: "/etc/net.conflist", Bin: "/srv/cni"}, Subnet: netip.MustParsePrefix("10.9.0.0/24"),
		DNS: sandbox.DNS{Servers: []string{"192.0.2.1"}, Search: []string{"example.com"}, Options: []string{"edns0"}},
	}
	if err != nil || !reflect.DeepEqual(net, want) {
		t.Errorf("%+v %v", net, err)
	}
	if want := (engine.DeviceOptions{Dirs: []string{"/srv/cdi"}, Free: []string{"vendor.com/class"}}); !reflect.DeepEqual(v.devices, want) {
		t.Errorf("%+v", v.devices)
	}
}

// Flags win; what neither says has a default.
func TestServeConfigUnderFlags(t *testing.T) {
	file := netConfig{Mode: "cni", CNIBinary: "/srv/cni", CNIPool: 3}
	got := file.over(netConfig{Mode: "host", CNIPool: 7})
	if got != (netConfig{Mode: "host", CNIConfig: cniConfig, CNIBinary: "/srv/cni", CNIPool: 7}) {
		t.Errorf("%+v", got)
	}
	off := true
	devices := cdiConfig{Disabled: &off, SpecDirs: []string{"/a"}}.options(engine.DeviceOptions{Dirs: []string{"/b"}})
	if !devices.Disabled || !slices.Equal(devices.Dirs, []string{"/b"}) {
		t.Errorf("%+v", devices)
	}
	if _, err := (netConfig{Subnet: "10.9.0.0"}).network(dnsConfig{}); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a subnet without a length: %v", err)
	}
	_, c, _, _, err := configured(t, "root = \"/srv/strata\"\n", "--root", "/mine")
	if err != nil || c.root != "/mine" {
		t.Errorf("%q %v", c.root, err)
	}
}

func TestServeConfigHistory(t *testing.T) {
	for text, want := range map[string]buildkit.HistoryOptions{
		"":                          {},
		"[history]\nmaxEntries = 7": {Entries: 7, Age: 1},
		"[history]\nmaxEntries = 0": {Disabled: true, Age: 1},
		"[history]\nmaxAge = 90":    {Age: 90 * time.Second},
		"[history]\nmaxAge = \"1h30m\"\nmaxEntries = 2": {Entries: 2, Age: 90 * time.Minute},
	} {
		conf, _, _, _, err := configured(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := conf.History.options(); err != nil || got != want {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"[history]\nmaxEntries = -1", "[history]\nmaxAge = \"soon\"", "[history]\nmaxAge = [1]"} {
		conf, _, _, _, err := configured(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conf.History.options(); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), "history.max") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestServeConfigThatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"[dns]\nnameservers = 3":          "the configuration",
		"[worker.oci]\nenabled = false\n": "the only worker",
	} {
		if _, _, _, _, err := configured(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, _, log, err := configured(t, "[otel]\nsocketPath = \"/run/otel.sock\"\n"); err != nil || !strings.Contains(log, "setting=otel.socketPath ") {
		t.Errorf("%q %v", log, err)
	}
}

func TestServeConfigFrontends(t *testing.T) {
	conf, _, _, log, err := configured(t, "[frontend.\"dockerfile.v0\"]\nenabled = false\n[frontend.\"gateway.v0\"]\nallowedRepositories = [\"docker/dockerfile\"]\n")
	if err != nil || log != "" {
		t.Fatal(err, log)
	}
	want := buildkit.Frontends{NoDockerfile: true, Repositories: []string{"docker.io/docker/dockerfile"}}
	if f, err := conf.Frontends.options(); err != nil || !reflect.DeepEqual(f, want) {
		t.Errorf("%+v, %v", f, err)
	}
	if conf, _, _, _, err = configured(t, ""); err != nil {
		t.Fatal(err)
	}
	if f, err := conf.Frontends.options(); err != nil || !reflect.DeepEqual(f, buildkit.Frontends{}) {
		t.Errorf("%+v, %v", f, err)
	}
	if conf, _, _, _, err = configured(t, "[frontend.\"gateway.v0\"]\nallowedRepositories = [\"A B\"]\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conf.Frontends.options(); diag.KindOf(err) != diag.Invalid {
		t.Errorf("a repository that is none: %v", err)
	}
}

func TestCacheRules(t *testing.T) {
	path := filepath.Join(t.TempDir(), "strata.toml")
	read := func(text string) (engine.CacheRules, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return cacheRules(path)
	}
	got, err := read("[registry.\"r\"]\nhttp = true\n[caches]\ntrusted = [\"r/ci/*\"]\ncredentials = [\"https://b.s3.eu.amazonaws.com\"]\n")
	want := engine.CacheRules{Trusted: []string{"r/ci/*"}, Credentials: []string{"https://b.s3.eu.amazonaws.com"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := read("[caches]\ncredentials = [\"bucket\"]\n"); diag.KindOf(err) != diag.Invalid || !strings.Contains(err.Error(), "bucket") {
		t.Errorf("error %v", err)
	}
	if got, err := cacheRules(filepath.Join(t.TempDir(), "none")); err != nil || got.Trusted != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, _, log, err := configured(t, "[caches]\ntrust = [\"r\"]\n"); err != nil || !strings.Contains(log, "setting=caches.trust ") {
		t.Errorf("a misspelt setting: %q %v", log, err)
	}
}

func TestServeStepLogLimits(t *testing.T) {
	for _, c := range []struct {
		size, speed string
		want        *buildkit.LogLimits
	}{
		{"", "", nil},
		{"much", "", nil},
		{"1000", "", &buildkit.LogLimits{Size: 1000, Speed: 200 << 10}},
		{"", "1000", &buildkit.LogLimits{Size: 2 << 20, Speed: 1000}},
		{"-1", "-1", &buildkit.LogLimits{Size: -1, Speed: -1}},
	} {
		t.Setenv("BUILDKIT_STEP_LOG_MAX_SIZE", c.size)
		t.Setenv("BUILDKIT_STEP_LOG_MAX_SPEED", c.speed)
		if got := stepLogLimits(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q %q: %+v", c.size, c.speed, got)
		}
	}
}
