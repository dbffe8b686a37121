package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// program is the binary under test.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "strata-e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755) // other users run it too
		program = filepath.Join(dir, "strata")
	}
	if err == nil {
		err = compile(program, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// compile builds the program; another version makes another binary.
func compile(to, version string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-X main.version=e2e"+version, "-o", to, "github.com/strata-build/strata/cmd/strata")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

// needBuild skips a test that runs steps where that is not possible.
func needBuild(t *testing.T) {
	t.Helper()
	filesystems, _ := os.ReadFile("/proc/filesystems")
	_, runc := exec.LookPath("runc")
	_, busybox := os.Stat("/bin/busybox")
	if os.Geteuid() != 0 || !strings.Contains(string(filesystems), "\toverlay\n") || runc != nil || busybox != nil {
		t.Skip("needs root, overlayfs, runc and /bin/busybox")
	}
}

// baseTar is a root file system: busybox and its applets.
var baseTar = sync.OnceValues(func() ([]byte, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.ModTime, h.Size = time.Unix(1, 0), int64(len(data))
		err = errors.Join(err, w.WriteHeader(&h))
		_, e := w.Write(data)
		err = errors.Join(err, e)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	return b.Bytes(), errors.Join(err, w.Close())
})
