package main

import (
	"cmp"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
)

// warning is what the daemon logs once it knows how.
type warning struct {
	msg  string
	args []any
}

func logAll(log *slog.Logger, all []warning) {
	for _, w := range all {
		log.Warn(w.msg, w.args...)
	}
}

// ignoredSetting is a setting of BuildKit, or a table of such, that has no effect here.
type ignoredSetting struct {
	name string
	why  string
	fine []any // values that ask for nothing else than what Strata does
}

func allIgnored() []ignoredSetting {
	return []ignoredSetting{
		{"grpc.uid", "the socket belongs to the user of the daemon; use grpc.gid", []any{int64(0)}},
		{"grpc.debugAddress", "no debug address is served", nil},
		{"grpc.securityDescriptor", "it is for Windows", nil},
		{"otel.socketPath", "traces are sent where OTEL_EXPORTER_OTLP_ENDPOINT says", nil},
		{"compaction", "the databases of the state compact themselves", nil},
		{"cache.gha.sign", "caches in GitHub's service are not signed", nil},
		{"cache.gha.verify.policy", "caches in GitHub's service are not verified; with verify.required they are refused", nil},
		{"system.platformsCacheMaxAge", "emulators are looked for in each build", nil},
		{"system.maxRegistryConcurrency", "the number of connections to a registry is fixed", nil},
		{"system.sessionAuthTimeout", "the time that a client has to answer is fixed", nil},
		{"worker.oci.platforms", "the platforms are detected", nil},
		{"worker.oci.snapshotter", "layers are always stacked with overlayfs", []any{"auto", "overlayfs", ""}},
		{"worker.oci.rootless", "the daemon runs steps as root only", []any{false}},
		{"worker.oci.noProcessSandbox", "steps keep a process namespace of their own", []any{false}},
		{"worker.oci.proxySnapshotterPath", "layers are always stacked with overlayfs", []any{""}},
		{"worker.oci.stargzSnapshotter", "layers are always stacked with overlayfs", nil},
		{"worker.oci.defaultCgroupParent", "steps are below the control group of the daemon", []any{""}},
		{"worker.oci.userRemapUnsupported", "it is not supported", []any{""}},
		{"worker.oci.bridgeName", "each step has a link of its own", nil},
	}
}

// ignoredSettings warns of settings of a file that have no effect, each by its name. The settings of the worker are those of
// worker.oci; with containerd, those of worker.containerd.
func ignoredSettings(all map[string]any, path string, containerd bool) []warning {
	var out []warning
	list := allIgnored()
	flat := map[string]any{}
	flatten("", all, flat)
	const oci, other = "worker.oci.", "worker.containerd."
	for _, name := range slices.Sorted(maps.Keys(flat)) {
		key, why := name, ""
		if rest, ok := strings.CutPrefix(name, other); ok {
			if key = oci + rest; !containerd || slices.Contains([]string{"address", "namespace", "runtime", "hypervIsolation"}, firstWord(rest)) {
				why = "steps do not run in containerd; the settings of the worker are in worker.oci"
			}
		} else if containerd && strings.HasPrefix(name, oci) && name != oci+"enabled" {
			why = "worker.oci is not enabled"
		}
		for _, i := range list {
			if why == "" && (key == i.name || strings.HasPrefix(key, i.name+".")) && !slices.ContainsFunc(i.fine, func(v any) bool { return reflect.DeepEqual(v, flat[name]) }) {
				why = i.why
			}
		}
		if why != "" {
			out = append(out, warning{"a setting has no effect", []any{"setting", name, "why", why, "file", path}})
		}
	}
	return out
}

func firstWord(key string) string {
	word, _, _ := strings.Cut(key, ".")
	return word
}

// flatten lists the values of tables by their full names.
func flatten(prefix string, v any, to map[string]any) {
	table, ok := v.(map[string]any)
	if !ok {
		to[strings.TrimSuffix(prefix, ".")] = v
		return
	}
	for k, sub := range table {
		flatten(prefix+k+".", sub, to)
	}
}

// unknownSetting warns of a setting that neither Strata nor BuildKit has.
func unknownSetting(key []string, place string) warning {
	name := strings.Join(key, ".")
	args := []any{"setting", name, "place", place}
	if near := nearSetting(key); near != "" {
		args = append(args, "hint", "did you mean "+near+"?")
	}
	return warning{"unknown setting", args}
}

// nearSetting is the setting that was probably meant, from those of the table that has it, or that the file calls wrong.
func nearSetting(key []string) string {
	t := reflect.TypeFor[serveConfig]()
	for i, word := range key {
		fields := settingsOf(t)
		next, ok := fields[word]
		if !ok {
			if near := diag.Suggest(word, slices.Sorted(maps.Keys(fields))); near != "" {
				return strings.Join(append(slices.Clone(key[:i]), near), ".")
			}
			return ""
		}
		t = next
	}
	return ""
}

// settingsOf lists the settings of a table. Of a table with names of the user's, each is one.
func settingsOf(t reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	out := map[string]reflect.Type{}
	if t.Kind() != reflect.Struct {
		return out
	}
	for f := range t.Fields() {
		if f.Anonymous {
			maps.Copy(out, settingsOf(f.Type))
		} else if name := f.Tag.Get("toml"); name != "" {
			out[name] = f.Type
		}
	}
	return out
}

// ignoredFlag is a flag of buildkitd that has no effect here.
type ignoredFlag struct {
	name string
	why  string // "" = it is not worth a word
	bool bool   // it needs no value
}

func allIgnoredFlags() []ignoredFlag {
	const containerd = "steps do not run in containerd"
	use := func(flag string) string { return containerd + "; use --" + flag }
	return []ignoredFlag{
		{"oci-worker", "", false},
		{"oci-worker-snapshotter", "layers are always stacked with overlayfs", false},
		{"oci-worker-proxy-snapshotter-path", "layers are always stacked with overlayfs", false},
		{"oci-worker-platform", "the platforms are detected", false},
		{"oci-worker-rootless", "the daemon runs steps as root only", true},
		{"oci-worker-no-process-sandbox", "steps keep a process namespace of their own", true},
		{"rootless", "the daemon runs steps as root only", true},
		{"debugaddr", "no debug address is served", false},
		{"otel-socket-path", "traces are sent where OTEL_EXPORTER_OTLP_ENDPOINT says", false},
		{"save-cache-debug", "there is no such record", true},
		{"containerd-worker", containerd, false},
		{"containerd-worker-addr", containerd, false},
		{"containerd-worker-labels", use("oci-worker-labels"), false},
		{"containerd-worker-platform", "the platforms are detected", false},
		{"containerd-worker-namespace", containerd, false},
		{"containerd-worker-runtime", use("runtime"), false},
		{"containerd-worker-net", use("oci-worker-net"), false},
		{"containerd-cni-config-path", use("oci-cni-config-path"), false},
		{"containerd-cni-binary-dir", use("oci-cni-binary-dir"), false},
		{"containerd-cni-pool-size", use("oci-cni-pool-size"), false},
		{"containerd-worker-snapshotter", "layers are always stacked with overlayfs", false},
		{"containerd-worker-apparmor-profile", use("oci-worker-apparmor-profile"), false},
		{"containerd-worker-selinux", containerd, true},
		{"containerd-worker-hyperv-isolation", "it is for Windows", true},
		{"containerd-max-parallelism", use("oci-max-parallelism"), false},
		{"containerd-worker-rootless", "the daemon runs steps as root only", true},
		{"containerd-worker-gc", use("oci-worker-gc"), true},
		{"containerd-worker-gc-keepstorage", use("oci-worker-gc-keepstorage"), false},
	}
}

// ignoredFlags adds them, hidden.
func ignoredFlags(fs *pflag.FlagSet) {
	for _, i := range allIgnoredFlags() {
		fs.StringArray(i.name, nil, "")
		f := fs.Lookup(i.name)
		if f.Hidden = true; i.bool {
			f.NoOptDefVal = "true"
		}
	}
}

// warnOfFlags says which of the flags have no effect: BuildKit's that are not needed, and those that do not exist.
func warnOfFlags(fs *pflag.FlagSet, argv []string) []warning {
	var out []warning
	for _, i := range allIgnoredFlags() {
		if fs.Changed(i.name) && i.why != "" && fs.Lookup(i.name).Value.String() != "[false]" {
			out = append(out, warning{"a flag has no effect", []any{"flag", "--" + i.name, "why", i.why}})
		}
	}
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	for i := 0; i < len(argv) && argv[i] != "--"; i++ {
		name, _, valued := strings.Cut(strings.TrimLeft(argv[i], "-"), "=")
		f := fs.Lookup(name)
		if !strings.HasPrefix(argv[i], "--") && len(name) == 1 {
			f = cmp.Or(f, fs.ShorthandLookup(name))
		}
		switch {
		case !strings.HasPrefix(argv[i], "-") || argv[i] == "-":
		case f == nil:
			args := []any{"flag", argv[i][:len(argv[i])-len(strings.TrimLeft(argv[i], "-"))] + name}
			if near := diag.Suggest(name, names); near != "" {
				args = append(args, "hint", "did you mean --"+near+"?")
			}
			out = append(out, warning{"unknown flag", args})
		case !valued && f.NoOptDefVal == "":
			i++ // its value
		}
	}
	return out
}
