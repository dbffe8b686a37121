package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// disk mounts a small ext4 file system of its own and returns where.
func disk(t *testing.T, mib int) string {
	t.Helper()
	image, at := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, line := range [][]string{
		{"truncate", "-s", fmt.Sprintf("%dM", mib), image}, {"mkfs.ext4", "-q", "-m", "0", image}, {"mount", "-o", "loop", image, at},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no disk of its own: %v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	return at
}

// TestDiskFull fills the disk of the state with each kind of step. One message says so, and nothing is lost.
func TestDiskFull(t *testing.T) {
	needBuild(t)
	s := newSiteAt(t, filepath.Join(disk(t, 96), "state"))
	s.base()
	s.write("Dockerfile", "FROM base AS good\nRUN echo good > /good\nCOPY small /small\n")
	s.write("small", "small")
	s.write("big", strings.Repeat("0123456789abcdef", 8<<20)) // 128 MiB
	if r := s.build(); r.code != 0 {
		t.Fatal(r.err)
	}
	want := s.layers("app")
	for name, step := range map[string]string{
		"RUN":         "RUN dd if=/dev/zero of=/big bs=1M count=200",
		"COPY":        "COPY big /big",
		"many files":  "RUN mkdir /d && cd /d && i=0; while [ $i -lt 200000 ]; do echo > $i || exit 1; i=$((i+1)); done",
		"cache mount": "RUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/big bs=1M count=200",
	} {
		t.Run(name, func(t *testing.T) {
			s.in(t)
			s.write("Bad", "FROM base AS good\nRUN echo good > /good\nCOPY small /small\n"+step+"\n")
			r := s.run("build", "--progress=plain", "-f", "Bad", ".")
			said := s.fails(r, "the disk that holds "+s.root+" is full", "hint: ", "Bad:4")
			if n := strings.Count("\n"+r.err, "\nerror: "); n != 1 {
				t.Errorf("%d errors:\n%s", n, said)
			}
			if state := r.steps()["[3/4] COPY small /small"]; state != "CACHED" {
				t.Errorf("the step before is %q\n%s", state, r.err)
			}
			s.ok("prune", "--filter", "type=mount")
			s.healthy()
			again := s.build()
			if again.code != 0 || again.steps()["[2/3] RUN echo good > /good"] != "CACHED" || !slices.Equal(s.layers("app"), want) {
				t.Errorf("the earlier image is not what it was: %s", again.err)
			}
			s.write("Other", "FROM base\nRUN echo "+strings.ReplaceAll(name, " ", "")+" > /other\n")
			s.ok("build", "--progress=plain", "-f", "Other", ".")
		})
	}
	s.in(t)
	if left := s.leftOfSteps(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// in makes the site report to another test.
func (s *site) in(t *testing.T) { s.t = t }

// TestDiskFullFromTheStart has no room for anything.
func TestDiskFullFromTheStart(t *testing.T) {
	needBuild(t)
	at := disk(t, 16)
	s := newSiteAt(t, filepath.Join(at, "state"))
	fill, err := os.Create(filepath.Join(at, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = fill.Write(make([]byte, 4096))
	}
	fill.Close()
	for _, mode := range [][]string{{"image", "ls"}, {"--no-daemon", "image", "ls"}} {
		s.fails(s.run(mode...), s.root, "no space left on device", "hint: free space")
	}
	if err := os.Remove(fill.Name()); err != nil {
		t.Fatal(err)
	}
	s.base()
	s.write("Dockerfile", "FROM base\nRUN true\n")
	if r := s.build(); r.code != 0 {
		t.Error(r.err)
	}
	s.healthy()
}

// TestReadOnlyDisk has the state on a file system that takes no writes.
func TestReadOnlyDisk(t *testing.T) {
	needBuild(t)
	at := disk(t, 64)
	s := newSiteAt(t, filepath.Join(at, "state"))
	s.base()
	s.ok("daemon", "stop")
	remount := func(how string) {
		if out, err := exec.Command("mount", "-o", "remount,"+how, at).CombinedOutput(); err != nil {
			t.Fatalf("remount: %s", out)
		}
	}
	remount("ro")
	for _, mode := range [][]string{{"image", "ls"}, {"--no-daemon", "image", "ls"}} {
		s.fails(s.run(mode...), s.root, "read-only file system", "hint: ")
	}
	remount("rw")
	s.healthy()

	s.write("Dockerfile", "FROM base\nRUN true\n")
	if r := s.build(); r.code != 0 {
		t.Fatal(r.err)
	}
	s.ok("daemon", "stop")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := newSiteAt(t, file)
	fresh.fails(fresh.run("image", "ls"), file, "not a directory", "hint: ")
}
