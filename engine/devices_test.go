package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func TestDevicesOf(t *testing.T) {
	dir := t.TempDir()
	text := "kind: acme.com/gpu\ndevices:\n- name: open\n  annotations: {org.mobyproject.buildkit.device.autoallow: \"true\"}\n- name: shut\n- name: free\n"
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	e := &Engine{opt: Options{Devices: DeviceOptions{Dirs: []string{dir}, Free: []string{"acme.com/gpu=free"}}}}
	for _, c := range []struct {
		allow, want, got string // got: names, or a part of the error
	}{
		{"", "acme.com/gpu=open", "acme.com/gpu=open"},
		{"", "acme.com/gpu=free", "acme.com/gpu=free"},
		{"", "acme.com/gpu=shut", "device acme.com/gpu=shut is requested by the build but not allowed"},
		{"device=acme.com/gpu=shut", "acme.com/gpu=shut", "acme.com/gpu=shut"},
		{"device=acme.com/gpu=*", "acme.com/gpu=shut", "acme.com/gpu=shut"},
		{"device=acme.com/gpu=shut,alias=mine", "mine", "acme.com/gpu=shut"},
		{"device=acme.com/gpu=shut,as=mine", "mine", "must be device"},
		{"device", "acme.com/gpu=shut", "acme.com/gpu=shut"},
		{"", "acme.com/gpu=none", "is not registered"},
	} {
		b := &build{e: e, allow: []string{c.allow}}
		got, err := b.devicesOf([]graph.Device{{Name: c.want}})
		var names []string
		for _, d := range got {
			names = append(names, d.Name)
		}
		text := strings.Join(names, " ")
		if err != nil {
			text = err.Error()
		}
		if !strings.Contains(text, c.got) {
			t.Errorf("%q %q: %q", c.allow, c.want, text)
		}
	}
	off := &build{e: &Engine{opt: Options{Devices: DeviceOptions{Disabled: true}}}}
	if _, err := off.devicesOf([]graph.Device{{Name: "x"}}); diag.KindOf(err) != diag.Denied {
		t.Error(err)
	}
	if got, err := off.devicesOf([]graph.Device{{Name: "x", Optional: true}}); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}
