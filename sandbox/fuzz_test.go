package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzSettings reads the files of devices and networks that others installed.
func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"a.com/b","devices":[{"name":"c","containerEdits":{"env":["A=b"]}}]}`))
	f.Add([]byte("kind: a.com/b\ndevices: &x\n- name: c\n- *x\n"))
	f.Add([]byte(`{"name":"n","cniVersion":"1.0.0","type":"bridge"}`))
	f.Add([]byte(`{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},null]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range []string{"x.json", "x.conf", "x.conflist"} {
			p := filepath.Join(dir, name)
			if err := os.WriteFile(p, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if name == "x.json" {
				_, _ = readCDI(p)
			} else {
				_, _ = readCNI(p)
			}
		}
	})
}

// FuzzUser looks up a user in the files of an image.
func FuzzUser(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\nu:x:1000:1000:::\n", "g:x:5:u\n", "u:g")
	f.Add("u:x:4294967296:-1::\n", "g:x:99999999999999999999:\n", "u")
	f.Add(":::::::::\n\x00", "", "2147483648")
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := ResolveUser(root, spec)
		if err != nil {
			return
		}
		for _, id := range append([]uint32{u.UID, u.GID}, u.Groups...) {
			if id >= 1<<31 {
				t.Fatalf("%q is %+v", spec, u)
			}
		}
	})
}
