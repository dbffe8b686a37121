package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/graph"
)

// fakePlugin notes how it is called, and answers as a plugin does.
const fakePlugin = `#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND $CNI_IFNAME $CNI_ARGS ${CNI_CONTAINERID#strata-}" >>DIR/calls
[ "$CNI_COMMAND" != ADD ] || [ -e "$CNI_NETNS" ] || exit 1
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1"}],"dns":{"nameservers":["10.1.0.9"]}}'
[ "$CNI_COMMAND" != VERSION ] || echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'
`

func fakeCNI(t *testing.T, b *box) (calls func() []string) {
	t.Helper()
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "fake"), []byte(strings.ReplaceAll(fakePlugin, "DIR", dir)), 0o755)
	conf := filepath.Join(dir, "net.json")
	os.WriteFile(conf, []byte(`{"cniVersion":"1.0.0","name":"test","type":"fake"}`), 0o644)
	box, err := New(Options{Root: b.root, Network: NetworkConfig{CNI: CNIConfig{Config: conf, Bin: dir}}})
	if err != nil {
		t.Fatal(err)
	}
	if box.Network() != CNI {
		t.Errorf("a CNI configuration is there, and the network is %q", box.Network())
	}
	b.Sandbox = box
	return func() []string {
		data, _ := os.ReadFile(filepath.Join(dir, "calls"))
		os.Remove(filepath.Join(dir, "calls"))
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
}

func TestCNI(t *testing.T) {
	b := newBox(t, "")
	calls := fakeCNI(t, b)
	step := func(s *Spec) {
		s.Network = graph.NetworkDefault
		s.ExtraHosts = []graph.HostIP{{Host: "up", IP: "host-gateway"}}
	}
	for range 2 { // the second one gets the namespace of the first
		if out, _ := b.sh(t, "cat /etc/resolv.conf /etc/hosts", step); !strings.Contains(out, "nameserver 10.1.0.9") || !strings.Contains(out, "10.1.0.1\tup") {
			t.Errorf("%q", out)
		}
	}
	if got := calls(); len(got) != 1 || !strings.HasPrefix(got[0], "ADD eth0 ") || strings.Contains(got[0], "K8S") {
		t.Errorf("%q", got)
	}
	b.sh(t, "true", func(s *Spec) { step(s); s.Hostname = "db" })
	if got := calls(); len(got) != 2 || !strings.Contains(got[0], "K8S_POD_NAME=db") || !strings.HasPrefix(got[1], "DEL eth0 ") || !strings.Contains(got[1], "K8S_POD_NAME=db") {
		t.Errorf("%q", got)
	}
	// An owner that dies leaves one attachment, which the next one detaches.
	if err := b.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	if got := calls(); len(got) != 1 || !strings.HasPrefix(got[0], "DEL eth0 ") {
		t.Errorf("%q", got)
	}
}

func TestNetworkModes(t *testing.T) {
	for _, c := range []struct {
		cfg  NetworkConfig
		want string
	}{
		{NetworkConfig{Mode: "pigeon"}, "invalid network mode"},
		{NetworkConfig{Mode: CNI, CNI: CNIConfig{Config: "/nowhere.json"}}, "/nowhere.json"},
	} {
		if _, err := New(Options{Root: t.TempDir(), Network: c.cfg}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	b := newBox(t, "")
	b.net.cfg.Mode = NoNetwork
	if out, _ := b.sh(t, "ls /sys/class/net; ip route", func(s *Spec) { s.Network = graph.NetworkDefault }); strings.Contains(out, "default") || strings.Contains(out, "eth0") {
		t.Errorf("%q", out)
	}
}
