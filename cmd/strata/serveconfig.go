package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/diag"
)

// serveConfig is what the daemon reads of buildkitd.toml. Registries are read by their own package. Values of type any are
// BuildKit's and mean nothing here: they are told, and ignored.
type serveConfig struct {
	Root         string         `toml:"root"`
	Debug        bool           `toml:"debug"`
	Trace        any            `toml:"trace"`
	Entitlements []string       `toml:"insecure-entitlements"`
	Registry     map[string]any `toml:"registry"`
	GRPC         struct {
		Address []string `toml:"address"`
		UID     any      `toml:"uid"`
		GID     any      `toml:"gid"`
		Debug   any      `toml:"debugAddress"`
		TLS     struct {
			Cert string `toml:"cert"`
			Key  string `toml:"key"`
			CA   string `toml:"ca"`
		} `toml:"tls"`
	} `toml:"grpc"`
	Worker struct {
		OCI        ociWorker `toml:"oci"`
		Containerd any       `toml:"containerd"`
	} `toml:"worker"`

	Proxied bool           `toml:"proxyNetwork"`
	Tenancy string         `toml:"tenancy"`
	CDI     cdiConfig      `toml:"cdi"`
	DNS     dnsConfig      `toml:"dns"`
	History *historyConfig `toml:"history"`

	Steps any `toml:"steps"` // see stepsConfig

	Provenance string `toml:"provenanceEnvDir"`

	Frontends frontendsConfig `toml:"frontend"`
	Caches    cachesConfig    `toml:"caches"` // read by cacheRules

	Log    any `toml:"log"`
	OTEL   any `toml:"otel"`
	System any `toml:"system"`
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

type ociWorker struct {
	netConfig
	Enabled     *bool             `toml:"enabled"`
	Labels      map[string]string `toml:"labels"`
	Parallel    int               `toml:"max-parallelism"`
	Binary      string            `toml:"binary"`
	GC          any               `toml:"gc"`
	KeepStorage any               `toml:"gckeepstorage"`
	Reserved    any               `toml:"reservedSpace"`
	MaxUsed     any               `toml:"maxUsedSpace"`
	MinFree     any               `toml:"minFreeSpace"`
	GCPolicy    any               `toml:"gcpolicy"`
	Platforms   any               `toml:"platforms"`
	Snapshotter any               `toml:"snapshotter"`
	Rootless    any               `toml:"rootless"`
	NoSandbox   any               `toml:"noProcessSandbox"`
	AppArmor    string            `toml:"apparmor-profile"`
	SELinux     bool              `toml:"selinux"`
	Proxy       any               `toml:"proxySnapshotterPath"`
	Default     any               `toml:"defaultCgroupParent"`
}

// loadServeConfig reads the file, which need not exist. A name that BuildKit does not have is an error with its place.
func loadServeConfig(path string, log *slog.Logger) (*serveConfig, error) {
	conf := &serveConfig{}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	src := &diag.Source{Name: path, Data: data}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(conf)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		row, _ := strict.Errors[0].Position()
		return nil, diag.Errorf(diag.Invalid, "unknown setting %s", strings.Join(strict.Errors[0].Key(), ".")).WithSpan(src.Lines(row, row))
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := bad.Position()
		return nil, diag.Errorf(diag.Invalid, "the configuration: %w", err).WithSpan(src.Lines(row, row))
	}
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the configuration: %w", err)
	}
	for name, v := range conf.unused() {
		if v != nil {
			log.Warn("a setting has no effect", "setting", name, "file", path)
		}
	}
	if e := conf.Worker.OCI.Enabled; e != nil && !*e {
		return nil, diag.Errorf(diag.Unsupported, "%s: worker.oci is not enabled, but it is the only worker", path)
	}
	return conf, nil
}

// unused are the settings that an operator should know to be ignored.
func (c *serveConfig) unused() map[string]any {
	o := &c.Worker.OCI
	return map[string]any{
		"grpc.uid": c.GRPC.UID, "grpc.gid": c.GRPC.GID, "grpc.debugAddress": c.GRPC.Debug, "otel": c.OTEL,
		"system":              c.System,
		"worker.oci.gcpolicy": o.GCPolicy, "worker.oci.gckeepstorage": o.KeepStorage, "worker.oci.reservedSpace": o.Reserved,
		"worker.oci.maxUsedSpace": o.MaxUsed, "worker.oci.minFreeSpace": o.MinFree, "worker.oci.snapshotter": o.Snapshotter,
		"worker.oci.platforms": o.Platforms, "worker.oci.bridgeName": o.Bridge,
		"worker.oci.rootless": o.Rootless, "worker.oci.noProcessSandbox": o.NoSandbox,
		"worker.oci.proxySnapshotterPath": o.Proxy, "worker.oci.defaultCgroupParent": o.Default,
	}
}

// apply fills in what the flags do not say.
func (c *serveConfig) apply(cli *cli, v *serving, fs *pflag.FlagSet) {
	if c.Root != "" && !fs.Changed("root") {
		cli.root = c.Root
	}
	if c.Debug {
		cli.debug = true
	}
	if !fs.Changed("addr") {
		v.addresses = c.GRPC.Address
	}
	if v.tls.Cert == "" && v.tls.Key == "" && v.tls.CA == "" {
		v.tls.Cert, v.tls.Key, v.tls.CA = c.GRPC.TLS.Cert, c.GRPC.TLS.Key, c.GRPC.TLS.CA
	}
	v.entitlements = slices.Concat(v.entitlements, c.Entitlements)
	for k, val := range c.Worker.OCI.Labels {
		v.labels = append(v.labels, k+"="+val)
	}
	v.net, v.devices = c.Worker.OCI.over(v.net), c.CDI.options(v.devices)
	if v.provenance == "" {
		v.provenance = c.Provenance
	}
	v.proxied = v.proxied || c.Proxied
	v.appArmor, v.seLinux = firstOf(v.appArmor, c.Worker.OCI.AppArmor), v.seLinux || c.Worker.OCI.SELinux
	v.tenancy = firstOf(v.tenancy, c.Tenancy)
	if v.parallel == 0 {
		v.parallel = c.Worker.OCI.Parallel
	}
	if cli.runtime == "" {
		cli.runtime = c.Worker.OCI.Binary
	}
}
