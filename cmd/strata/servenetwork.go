package main

import (
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/sandbox"
)

// Where buildkitd looks for the configuration and the plugins of CNI.
const (
	cniConfig = "/etc/buildkit/cni.json"
	cniBin    = "/opt/cni/bin"
)

// dnsConfig is what steps find in /etc/resolv.conf in place of this machine's.
type dnsConfig struct {
	Nameservers   []string `toml:"nameservers"`
	Options       []string `toml:"options"`
	SearchDomains []string `toml:"searchDomains"`
}

type cdiConfig struct {
	Disabled    *bool    `toml:"disabled"`
	SpecDirs    []string `toml:"specDirs"`
	AutoAllowed []string `toml:"autoAllowed"`
}

// netConfig is the network of the worker's steps.
type netConfig struct {
	Mode      string `toml:"networkMode"`
	CNIConfig string `toml:"cniConfigPath"`
	CNIBinary string `toml:"cniBinaryPath"`
	CNIPool   int    `toml:"cniPoolSize"`
	Bridge    any    `toml:"bridgeName"`
	Subnet    string `toml:"bridgeSubnet"`
}

// networkFlags are those of buildkitd for networks and devices.
func networkFlags(fs *pflag.FlagSet, n *netConfig, d *engine.DeviceOptions) {
	fs.StringVar(&n.Mode, "oci-worker-net", "", "Network of steps: auto, bridge, cni, host or none")
	fs.StringVar(&n.CNIConfig, "oci-cni-config-path", "", "Configuration of the CNI network (default "+cniConfig+")")
	fs.StringVar(&n.CNIBinary, "oci-cni-binary-dir", "", "Directory of the CNI plugins (default "+cniBin+")")
	fs.IntVar(&n.CNIPool, "oci-cni-pool-size", 0, "Network namespaces that are kept for later steps (default 16)")
	fs.BoolVar(&d.Disabled, "cdi-disabled", false, "Give no step a device of this machine")
	fs.StringSliceVar(&d.Dirs, "cdi-spec-dir", nil, "Directories of CDI descriptions of devices (default /etc/cdi, /var/run/cdi)")
}

// over fills in what the flags do not say.
func (n netConfig) over(flags netConfig) netConfig {
	n.Mode, n.CNIConfig, n.CNIBinary = firstOf(flags.Mode, n.Mode), firstOf(flags.CNIConfig, n.CNIConfig, cniConfig), firstOf(flags.CNIBinary, n.CNIBinary, cniBin)
	if flags.CNIPool != 0 {
		n.CNIPool = flags.CNIPool
	}
	return n
}

// auto is what buildkitd chooses where nothing is configured: CNI if there is a configuration of it, else this machine's network,
// or a bridge if the variable that its images set says so.
func (n netConfig) auto() string {
	if n.Mode != "" && n.Mode != "auto" {
		return n.Mode
	}
	if bridge, err := strconv.ParseBool(os.Getenv("BUILDKIT_NETWORK_BRIDGE_AUTO")); err == nil && bridge {
		return string(sandbox.Bridge)
	}
	if _, err := os.Stat(n.CNIConfig); err == nil {
		return string(sandbox.CNI)
	}
	return string(sandbox.HostAlways)
}

// network makes the engine's configuration.
func (n netConfig) network(d dnsConfig) (engine.NetworkConfig, error) {
	out := engine.NetworkConfig{
		Mode: sandbox.NetworkMode(strings.TrimPrefix(n.Mode, "auto")), Idle: n.CNIPool, CNI: sandbox.CNIConfig{Config: n.CNIConfig, Bin: n.CNIBinary},
		DNS: sandbox.DNS{Servers: d.Nameservers, Search: d.SearchDomains, Options: d.Options},
	}
	if n.Subnet != "" {
		p, err := netip.ParsePrefix(n.Subnet)
		if err != nil {
			return out, diag.Errorf(diag.Invalid, "worker.oci.bridgeSubnet: %w", err)
		}
		out.Subnet = p
	}
	return out, nil
}

// options makes the engine's configuration of devices, in which flags win.
func (c cdiConfig) options(flags engine.DeviceOptions) engine.DeviceOptions {
	out := flags
	if len(out.Dirs) == 0 {
		out.Dirs = c.SpecDirs
	}
	out.Free = c.AutoAllowed
	out.Disabled = out.Disabled || c.Disabled != nil && *c.Disabled
	return out
}
