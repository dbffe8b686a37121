package engine

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestRequestAsAttributes(t *testing.T) {
	when := time.Unix(7, 0)
	r := Request{
		Dockerfile: "D", Context: "https://example.com/x.git", LocalFile: true, Target: "t", NoCacheFilter: []string{"a", "b"}, Pull: true, Network: graph.NetworkHost,
		BuildArgs: map[string]string{"A": ""}, BuildContexts: map[string]string{"c": "local:c"}, Labels: map[string]string{"l": "v"}, Epoch: &when,
		Platforms:  []graph.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}},
		ExtraHosts: []graph.HostIP{{Host: "h", IP: "::1"}, {Host: "i", IP: "1.2.3.4"}},
		Limits:     graph.Limits{ShmSize: 1, Memory: 2, MemorySwap: -1, CPUShares: 3, CPUPeriod: 4, CPUQuota: 5, CPUSet: "0", Mems: "1", CgroupParent: "p", Ulimits: []graph.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}},
	}
	want := map[string]string{
		"filename": "D", "context": "https://example.com/x.git", "dockerfilekey": "dockerfile", "target": "t", "no-cache": "a,b", "image-resolve-mode": "pull",
		"force-network-mode": "host", "build-arg:A": "", "build-arg:SOURCE_DATE_EPOCH": "7", "context:c": "local:c", "label:l": "v", "platform": "linux/amd64,linux/arm64",
		"add-hosts": "h=::1,i=1.2.3.4", "shm-size": "1", "memory": "2", "memswap": "-1", "cpushares": "3", "cpuperiod": "4", "cpuquota": "5", "cpusetcpus": "0",
		"cpusetmems": "1", "cgroup-parent": "p", "ulimit": "nofile=1:2",
	}
	if got := r.attributes(); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
	all := Request{NoCache: true, NoCacheFilter: []string{"a"}}
	if v, ok := all.attributes()["no-cache"]; !ok || v != "" {
		t.Errorf("no-cache %q %t", v, ok)
	}
	if got := (&Request{}).attributes(); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestAnswerOfFrontend(t *testing.T) {
	r, err := answered("outline", map[string]string{"result.txt": "text\n", "result.json": `{"a":1}`, "result.statuscode": "0"})
	if err != nil || r.Text != "text\n" || r.Metadata["outline"] == nil {
		t.Errorf("%+v, %v", r, err)
	}
	for want, meta := range map[string]map[string]string{
		"a finding\nno such image": {"result.txt": "a finding\n", "result.json": `{"buildError":{"message":"no such image"}}`},
		"no such image":            {"result.json": `{"buildError":{"message":"no such image"}}`},
		"the check has failed":     {"result.json": "?"},
	} {
		meta["result.statuscode"] = "1"
		if _, err := answered("check", meta); diag.KindOf(err) != diag.Failed || strings.ReplaceAll(err.Error(), "\n\n", "\n") != want {
			t.Errorf("%q", err)
		}
	}
}
