package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types "github.com/containernetworking/cni/pkg/types/100"

	"github.com/strata-build/strata/diag"
)

// CNIConfig says which plugins of the Container Network Interface connect steps.
// https://github.com/containernetworking/cni/blob/main/SPEC.md
type CNIConfig struct {
	Config string // path of a network configuration: .conflist a list, else one plugin
	Bin    string // directory of the plugins
}

// cni runs the plugins. What is attached is noted in a directory of the sandbox, so that Sweep detaches what a dead owner left.
type cni struct {
	net  *libcni.NetworkConfigList
	run  *libcni.CNIConfig
	id   string // begins the names of attachments
	next func() int64

	refused []netip.Prefix // that steps do not reach
}

// cniPatience bounds how long plugins may take.
const cniPatience = time.Minute

func newCNI(cfg CNIConfig, cache, id string, next func() int64) (*cni, error) {
	list, err := readCNI(cfg.Config)
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the CNI configuration %s: %w", cfg.Config, err)
	}
	c := &cni{net: list, run: runCNI(cfg, cache), id: id, next: next}
	for _, p := range list.Plugins {
		if _, err := os.Stat(filepath.Join(cfg.Bin, p.Network.Type)); err != nil {
			return nil, diag.Errorf(diag.NotFound, "the CNI plugin %s: %w", p.Network.Type, err)
		}
	}
	return c, nil
}

// runCNI runs plugins for several steps at once. Without an Exec of ours, the library makes one when it is first used, unguarded.
func runCNI(cfg CNIConfig, cache string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{cfg.Bin}, cache, &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}})
}

func readCNI(path string) (*libcni.NetworkConfigList, error) {
	data, err := readSettings(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".conflist") {
		return libcni.NetworkConfFromBytes(data)
	}
	// A single plugin, as BuildKit's configurations are: a list of one.
	one, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(map[string]any{
		"name": one.Network.Name, "cniVersion": one.Network.CNIVersion, "plugins": []json.RawMessage{data},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

// newSlot makes a network namespace and attaches it, under a host name if there is one.
func (c *cni) newSlot(hostname string) (*slot, error) {
	ns, err := newNS()
	if err != nil {
		return nil, err
	}
	s := &slot{ns: ns}
	rt := &libcni.RuntimeConf{ContainerID: fmt.Sprintf("%s-%d", c.id, c.next()), NetNS: s.path(), IfName: "eth0"}
	if hostname != "" {
		// The plugin dnsname takes a host name by Kubernetes' word for it; the others are to ignore it.
		rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", hostname}}
	}
	ctx, cancel := context.WithTimeout(context.Background(), cniPatience)
	defer cancel()
	res, err := c.run.AddNetworkList(ctx, c.net, rt)
	if err == nil {
		err = s.describe(res.GetAsVersion(types.ImplementedSpecVersion))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("CNI network %s: %w", c.net.Name, err), c.detach(c.net, rt))
		s.close()
		return nil, err
	}
	s.detach = func() error { return c.detach(c.net, rt) }
	if err := prohibit(ns, c.refused); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *slot) describe(r any, err error) error {
	res, ok := r.(*types.Result)
	if err != nil || !ok {
		return errors.Join(err, errors.New("the result cannot be read"))
	}
	for _, ip := range res.IPs {
		if ip.Gateway != nil && s.gateway == "" {
			s.gateway = ip.Gateway.String()
		}
	}
	s.servers = res.DNS.Nameservers
	return nil
}

func (c *cni) detach(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(context.Background(), cniPatience)
	defer cancel()
	return c.run.DelNetworkList(ctx, list, rt)
}

// sweepCNI detaches what a dead owner left. Its namespaces are gone; what plugins keep elsewhere, such as addresses, is not.
func sweepCNI(ctx context.Context, cfg CNIConfig, cache string) error {
	if _, err := os.Stat(cache); err != nil {
		return nil
	}
	run := runCNI(cfg, cache)
	left, err := run.GetCachedAttachments("")
	errs := []error{err}
	for _, a := range left {
		list, err := libcni.NetworkConfFromBytes(a.Config)
		if err == nil {
			err = run.DelNetworkList(ctx, list, &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: a.IfName, Args: a.CniArgs})
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(cache))...)
}
