package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/strata-build/strata/api/buildkit"
	"github.com/strata-build/strata/api/local"
	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/sandbox/restrict"
	"github.com/strata-build/strata/tracing"
)

// serving are the settings of the daemon: flags, and what they do not say, the configuration file.
type serving struct {
	addresses    []string
	group        string
	tls          buildkit.TLSFiles
	entitlements []string
	labels       []string
	parallel     int
	net          netConfig
	devices      engine.DeviceOptions
	appArmor     string // profile of steps
	seLinux      bool
	proxied      bool
	metadata     bool     // builds may reach link-local addresses and metadata services
	oldRunc      bool     // a runc with known ways out of its containers may be used
	parents      []string // control groups that builds may name
	asBuildKit   bool
	provenance   string // directory of what provenance tells of this builder
	tenancy      string // which clients share what they build
	space        tenantSpace
	log          logConfig
	trace        bool
	gc           gcConfig
}

func newServe(c *cli) *cobra.Command {
	v := &serving{}
	cmd := &cobra.Command{
		Use:   "serve [OPTIONS]",
		Short: "Serve BuildKit's clients",
		Long: "Serve BuildKit's clients: buildctl, docker buildx (driver remote) and others; and this program's own commands.\n\n" +
			"The configuration file has the names of buildkitd.toml. A program of the name buildkitd is this command: it takes\n" +
			"buildkitd's flags, and reads /etc/buildkit/buildkitd.toml.",
		Args:               args(0, 0, "no arguments"),
		Annotations:        map[string]string{ownsEngine: "yes"},
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true}, // warnOfFlags says which they are
		RunE: func(cmd *cobra.Command, _ []string) error {
			if show, err := cmd.Flags().GetBool("version"); err == nil && show {
				fmt.Fprintf(c.out, "buildkitd github.com/strata-build/strata %s\n", version)
				return nil
			}
			return c.serveClients(cmd.Context(), v, cmd.Flags())
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&v.addresses, "addr", nil, "Listen on unix://PATH, tcp://HOST:PORT with certificates, or fd://NAME of systemd (default "+buildkit.DefaultAddress+")")
	fs.StringVar(&v.group, "group", "", "Group that may use the Unix socket")
	fs.StringVar(&v.tls.Cert, "tlscert", "", "Certificate of the server")
	fs.StringVar(&v.tls.Key, "tlskey", "", "Key of the certificate")
	fs.StringVar(&v.tls.CA, "tlscacert", "", "Authority that signs the certificates of clients")
	fs.StringSliceVar(&v.entitlements, "allow-insecure-entitlement", nil, "Let builds ask for network.host, security.insecure or device")
	fs.StringSliceVar(&v.labels, "oci-worker-labels", nil, "Tell clients about the worker: KEY=VALUE")
	fs.IntVar(&v.parallel, "oci-max-parallelism", 0, "Steps that run at once (default by the number of processors)")
	fs.BoolVar(&v.proxied, "proxy-network", false, "Give steps a proxy alone, which records what they fetch")
	fs.BoolVar(&v.metadata, "allow-metadata", false, "Let builds reach link-local addresses and the cloud's metadata services ($STRATA_ALLOW_METADATA)")
	fs.BoolVar(&v.oldRunc, "allow-old-runc", false, "Use a runc from which containers can escape ($STRATA_ALLOW_OLD_RUNC)")
	fs.StringArrayVar(&v.parents, "allow-cgroup-parent", nil, "Let builds put steps below this control group (default none)")
	bytesFlag(fs, "gc-bytes", "Keep the state below this size (default chosen by the disk; $STRATA_GC_BYTES)", &c.gcBytes)
	fs.Func("tenant-space", "Space of the disk for each client with --tenancy client, such as 20GB, or none (default: half of the cache's)", func(s string) error {
		return v.space.UnmarshalText([]byte(s))
	})
	fs.StringVar(&v.tenancy, "tenancy", "", "Who shares what is built: all clients (none, the default), or nobody (client)")
	fs.BoolVar(&v.asBuildKit, "as-buildkitd", false, "Behave as buildkitd does")
	fs.StringVar(&v.log.Level, "log-level", "", "What to log: trace, debug, info, warn, error, fatal or panic ($BUILDKITD_LOG_LEVEL, default info)")
	fs.StringVar(&v.log.Format, "log-format", "", "Format of the log: text or json (default text)")
	fs.BoolVar(&v.trace, "trace", false, "Log everything")
	fs.Bool("version", false, "Print the version")
	_ = fs.MarkHidden("trace")
	_ = fs.MarkHidden("as-buildkitd") // these fail for unknown flags only
	_ = fs.MarkHidden("version")
	fs.StringVar(&v.provenance, "provenance-env-dir", "", "Directory of JSON files with what provenance tells of this builder (default /etc/buildkit/provenance.d)")
	fs.StringVar(&v.appArmor, "oci-worker-apparmor-profile", "", "AppArmor profile of steps; the kernel must have it")
	fs.BoolVar(&v.seLinux, "oci-worker-selinux", false, "")
	_ = fs.MarkHidden("oci-worker-selinux") // it is refused
	networkFlags(fs, &v.net, &v.devices)
	gcFlags(fs, &v.gc)
	ignoredFlags(fs)
	return cmd
}

// serveClients is the daemon.
func (c *cli) serveClients(ctx context.Context, v *serving, fs *pflag.FlagSet) (err error) {
	if !fs.Changed("config") {
		path, variable := v.configPath(c.config)
		if variable != "" {
			if err := configExists(path, variable); err != nil {
				return err
			}
		}
		c.config = path
	}
	conf, told, err := loadServeConfig(c.config)
	if err != nil {
		return err
	}
	log, err := v.logging(c.debug, conf).logger(c.err)
	if err != nil {
		return err
	}
	logAll(log, append(told, warnOfFlags(fs, c.args)...))
	conf.apply(c, v, fs)
	for _, e := range v.entitlements {
		if !slices.Contains(entitlements, e) {
			return diag.Errorf(diag.Invalid, "invalid entitlement: %s", e).WithHint("it must be network.host, security.insecure or device")
		}
	}
	if v.seLinux {
		return diag.Errorf(diag.Unsupported, "steps cannot have SELinux labels").WithHint("leave out --oci-worker-selinux and worker.oci.selinux; docs/security.md says what confines steps")
	}
	labels := map[string]string{}
	for _, l := range v.labels {
		k, val, ok := strings.Cut(l, "=")
		if !ok {
			return diag.Errorf(diag.Invalid, "label %q: it must be KEY=VALUE", l)
		}
		labels[k] = val
	}
	opt, err := c.engineOptions()
	if err != nil {
		return err
	}
	rules, capacity, err := v.gc.rules()
	if err != nil {
		return err
	}
	if opt.GCBytes == 0 {
		opt.GCBytes = capacity
	}
	opt.RegistryConfig, opt.Registries, opt.Caches.RefuseActions = "", conf.Registry, conf.Cache.GHA.Verify.Required
	opt.Steps.AppArmor = firstOf(v.appArmor, opt.Steps.AppArmor)
	opt.Serves, opt.MaxParallel, opt.TenantBytes, opt.Log, opt.Devices = true, v.parallel, int64(v.space), log, v.devices
	if opt.ProvenanceEnv, err = builderFacts(v.provenance); err != nil {
		return err
	}
	if v.asBuildKit {
		v.net.Mode = v.net.auto()
	}
	if opt.Network, err = v.net.network(conf.DNS); err != nil {
		return err
	}
	opt.AllowMetadata = opt.AllowMetadata || v.metadata
	opt.OldRuntime, opt.CgroupParents = opt.OldRuntime || v.oldRunc, v.parents
	opt.Network.RefuseMetadata = !opt.AllowMetadata
	opt.Network.MayUseHost = slices.Contains(v.entitlements, "network.host")
	if !v.devices.Disabled {
		v.entitlements = append(v.entitlements, "device") // a build still asks for each one
	}
	use, err := conf.Frontends.options()
	if err != nil {
		return err
	}
	opt.Frontend = buildkit.Frontend(buildkit.Options{Version: version, Frontends: use, Labels: labels})
	past, err := conf.History.options()
	if err != nil {
		return err
	}
	if opt.Tracer, err = tracing.New(ctx, version, !past.Disabled); err != nil {
		return err
	}
	eng, err := engine.Open(ctx, opt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	bk, err := buildkit.New(eng, buildkit.Options{Log: log, Version: version, Entitlements: v.entitlements, Labels: labels, History: past, Tracer: opt.Tracer, ProxyNetwork: v.proxied, Frontends: use, Tenancy: buildkit.Tenancy(v.tenancy), GC: rules, LogLimits: stepLogLimits()})
	if err != nil {
		return err
	}
	return c.listenAndServe(ctx, v, eng, bk, log)
}

// configPath is the file that the daemon reads if no flag names one. It returns the variable too, if BuildKit's names the file.
func (v *serving) configPath(own string) (path, variable string) {
	const buildkits = "BUILDKITD_CONFIG"
	if p := os.Getenv(buildkits); p != "" && (v.asBuildKit || os.Getenv("STRATA_CONFIG") == "") {
		return p, buildkits
	}
	if v.asBuildKit && os.Getenv("STRATA_CONFIG") == "" {
		return "/etc/buildkit/buildkitd.toml", ""
	}
	return own, ""
}

// listen opens the addresses, or takes the sockets that the service manager has opened.
func (v *serving) listen(log *slog.Logger) ([]*buildkit.Endpoint, error) {
	passed, err := buildkit.Passed()
	if err != nil {
		return nil, err
	}
	if len(v.addresses) == 0 {
		v.addresses = []string{buildkit.DefaultAddress}
		if len(passed) > 0 {
			v.addresses = []string{"fd://"}
		}
	}
	var ends []*buildkit.Endpoint
	for _, a := range v.addresses {
		if which, ok := strings.CutPrefix(a, "fd://"); ok {
			found, err := buildkit.ListenPassed(which, passed, v.tls)
			if err != nil {
				return nil, err
			}
			ends = append(ends, found...)
		} else {
			e, err := buildkit.Listen(a, v.group, v.tls)
			if err != nil {
				return nil, err
			}
			ends = append(ends, e)
		}
		log.Info("serving", "address", a)
	}
	return ends, nil
}

func (c *cli) listenAndServe(ctx context.Context, v *serving, eng *engine.Engine, bk *buildkit.Server, log *slog.Logger) error {
	own, err := local.Listen(c.root)
	if err != nil {
		return diag.Errorf(diag.Unavailable, "the engine cannot be served: %w", err)
	}
	if !restrict.Confines() {
		log.Warn("the kernel does not confine the unpacking of archives: it has no landlock, or one before Linux 5.19")
	}
	ends, err := v.listen(log)
	if err != nil {
		return errors.Join(err, own.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error {
		defer cancel()
		return local.Serve(ctx, own, eng, local.ServeOptions{Log: log, Busy: bk.Busy, Built: bk.Built, Config: c.absConfig(), Stays: true})
	})
	g.Go(func() error {
		defer cancel()
		return bk.Serve(ctx, ends...)
	})
	return g.Wait()
}
