package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/registry"
)

// serveConfig is what the daemon reads of buildkitd.toml. Settings that have no effect here are in the list of ignored ones:
// their values are checked all the same, and they are warned about.
type serveConfig struct {
	Root         string                         `toml:"root"`
	Debug        bool                           `toml:"debug"`
	Trace        bool                           `toml:"trace"`
	Log          logConfig                      `toml:"log"`
	Entitlements []string                       `toml:"insecure-entitlements"`
	Registry     map[string]registry.HostConfig `toml:"registry"`
	GRPC         struct {
		Address  []string `toml:"address"`
		UID      *int     `toml:"uid"`
		GID      *int     `toml:"gid"`
		Debug    string   `toml:"debugAddress"`
		Security string   `toml:"securityDescriptor"`
		TLS      struct {
			Cert string `toml:"cert"`
			Key  string `toml:"key"`
			CA   string `toml:"ca"`
		} `toml:"tls"`
	} `toml:"grpc"`
	Worker struct {
		OCI        workerConfig `toml:"oci"`
		Containerd workerConfig `toml:"containerd"`
	} `toml:"worker"`

	Proxied bool           `toml:"proxyNetwork"`
	Tenancy string         `toml:"tenancy"`
	Space   tenantSpace    `toml:"tenantSpace"`
	CDI     cdiConfig      `toml:"cdi"`
	DNS     dnsConfig      `toml:"dns"`
	History *historyConfig `toml:"history"`

	Steps any `toml:"steps"` // see stepsConfig

	Provenance string `toml:"provenanceEnvDir"`

	Frontends frontendsConfig `toml:"frontend"`
	Caches    cachesConfig    `toml:"caches"` // read by cacheRules

	OTEL struct {
		Socket string `toml:"socketPath"`
	} `toml:"otel"`
	System struct {
		Platforms   any  `toml:"platformsCacheMaxAge"`
		Connections *int `toml:"maxRegistryConcurrency"`
		AuthTimeout any  `toml:"sessionAuthTimeout"`
	} `toml:"system"`
	Cache      cacheConfig      `toml:"cache"`
	Compaction compactionConfig `toml:"compaction"`
}

// cacheConfig says how caches in GitHub's service are signed and verified.
type cacheConfig struct {
	GHA struct {
		Sign struct {
			Command any `toml:"command"`
		} `toml:"sign"`
		Verify struct {
			Required bool           `toml:"required"`
			Policy   map[string]any `toml:"policy"`
		} `toml:"verify"`
	} `toml:"gha"`
}

// compactionConfig is the upkeep of BuildKit's databases.
type compactionConfig struct {
	Enabled           bool  `toml:"enabled"`
	IdleTimeout       any   `toml:"idleTimeout"`
	MaxRetry          int64 `toml:"maxRetry"`
	WritesPerCheck    int64 `toml:"writesPerCheck"`
	SizeWatermark     int64 `toml:"sizeWatermark"`
	SizeGrowthPercent int64 `toml:"sizeGrowthPercent"`
	MinReclaimBytes   int64 `toml:"minReclaimBytes"`
	MinReclaim        int64 `toml:"minReclaimPercent"`
	MinReclaimFloor   int64 `toml:"minReclaimPercentFloor"`
}

// frontendsConfig says which frontends builds may use; those that are not named may be.
type frontendsConfig struct {
	Dockerfile struct {
		Enabled *bool `toml:"enabled"`
	} `toml:"dockerfile.v0"`
	Gateway struct {
		Enabled      *bool    `toml:"enabled"`
		Repositories []string `toml:"allowedRepositories"`
	} `toml:"gateway.v0"`
}

func (c *frontendsConfig) options() (f buildkit.Frontends, err error) {
	off := func(v *bool) bool { return v != nil && !*v }
	f.NoDockerfile, f.NoGateway = off(c.Dockerfile.Enabled), off(c.Gateway.Enabled)
	f.Repositories, err = buildkit.NewRepositories(c.Gateway.Repositories)
	return f, err
}

// workerConfig is a worker. There is one: it has the settings of worker.containerd where that alone is enabled.
type workerConfig struct {
	netConfig
	gcConfig
	Enabled     *bool             `toml:"enabled"`
	Labels      map[string]string `toml:"labels"`
	Parallel    int               `toml:"max-parallelism"`
	Binary      string            `toml:"binary"`
	Platforms   []string          `toml:"platforms"`
	Snapshotter string            `toml:"snapshotter"`
	Rootless    bool              `toml:"rootless"`
	NoSandbox   bool              `toml:"noProcessSandbox"`
	AppArmor    string            `toml:"apparmor-profile"`
	SELinux     bool              `toml:"selinux"`
	Proxy       string            `toml:"proxySnapshotterPath"`
	Parent      string            `toml:"defaultCgroupParent"`
	Remap       string            `toml:"userRemapUnsupported"`
	Stargz      map[string]any    `toml:"stargzSnapshotter"`

	Address   string         `toml:"address"` // of containerd
	Namespace string         `toml:"namespace"`
	Runtime   map[string]any `toml:"runtime"`
	HyperV    bool           `toml:"hypervIsolation"`
}

// loadServeConfig reads the file, which need not exist. A setting that does not exist or has no effect is a warning; a value that
// is wrong is an error with its place.
func loadServeConfig(path string) (*serveConfig, []warning, error) {
	conf := &serveConfig{}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return conf, nil, nil
	}
	if err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	var told []warning
	src := &diag.Source{Name: path, Data: data}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(conf)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		err = nil
		for _, e := range strict.Errors {
			row, _ := e.Position()
			told = append(told, unknownSetting(e.Key(), fmt.Sprintf("%s:%d", path, row)))
		}
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := bad.Position()
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration: %w", err).WithSpan(src.Lines(row, row))
	}
	if err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	if err := conf.check(); err != nil {
		return nil, nil, diag.Errorf(diag.Invalid, "%s: %w", path, err)
	}
	return conf, append(told, ignoredSettings(all, path, conf.worker() == &conf.Worker.Containerd)...), nil
}

// check looks at values that nothing else looks at.
func (c *serveConfig) check() error {
	for name, v := range map[string]any{
		"system.platformsCacheMaxAge": c.System.Platforms, "system.sessionAuthTimeout": c.System.AuthTimeout, "compaction.idleTimeout": c.Compaction.IdleTimeout,
	} {
		if _, err := tomlDuration(v); err != nil {
			return diag.Errorf(diag.Invalid, "%s: %w", name, err)
		}
	}
	if n := c.System.Connections; n != nil && *n <= 0 {
		return diag.Errorf(diag.Invalid, "system.maxRegistryConcurrency is %d: it must be greater than zero", *n)
	}
	if e := c.Worker.OCI.Enabled; e != nil && !*e && c.worker() == &c.Worker.OCI {
		return diag.Errorf(diag.Unsupported, "worker.oci is not enabled, but it is the only worker")
	}
	return nil
}

// worker is the section with the worker's settings.
func (c *serveConfig) worker() *workerConfig {
	on := func(w *workerConfig, want bool) bool { return w.Enabled != nil && *w.Enabled == want }
	if on(&c.Worker.OCI, false) && on(&c.Worker.Containerd, true) {
		return &c.Worker.Containerd
	}
	return &c.Worker.OCI
}

// apply fills in what the flags do not say.
func (c *serveConfig) apply(cli *cli, v *serving, fs *pflag.FlagSet) {
	if c.Root != "" && !fs.Changed("root") {
		cli.root = c.Root
	}
	if !fs.Changed("addr") {
		v.addresses = c.GRPC.Address
	}
	if v.group == "" && c.GRPC.GID != nil {
		v.group = strconv.Itoa(*c.GRPC.GID)
	}
	if v.tls.Cert == "" && v.tls.Key == "" && v.tls.CA == "" {
		v.tls.Cert, v.tls.Key, v.tls.CA = c.GRPC.TLS.Cert, c.GRPC.TLS.Key, c.GRPC.TLS.CA
	}
	v.entitlements = slices.Concat(v.entitlements, c.Entitlements)
	w := c.worker()
	for k, val := range w.Labels {
		v.labels = append(v.labels, k+"="+val)
	}
	v.net, v.devices = w.over(v.net), c.CDI.options(v.devices)
	if v.provenance == "" {
		v.provenance = c.Provenance
	}
	v.proxied = v.proxied || c.Proxied
	v.appArmor, v.seLinux = firstOf(v.appArmor, w.AppArmor), v.seLinux || w.SELinux
	v.tenancy = firstOf(v.tenancy, c.Tenancy)
	if v.space == 0 {
		v.space = c.Space
	}
	if v.parallel == 0 {
		v.parallel = w.Parallel
	}
	if cli.runtime == "" {
		cli.runtime = w.Binary
	}
	v.gc.under(&w.gcConfig)
}
