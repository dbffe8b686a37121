package e2e

import (
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// realBytes is what du says of the root.
func (s *site) realBytes() (total int64) {
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(s.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if e.IsDir() && filepath.Dir(path) == filepath.Join(s.root, "tmp") {
			return fs.SkipDir // what is just being deleted or mounted
		}
		if fi, err := e.Info(); err == nil {
			if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
				seen[st.Ino] = true
				total += st.Blocks * 512
			}
		}
		return nil
	})
	return total
}

// TestCapUnderLoad pushes images while the store is always over its cap: no export may miss what the collector took, and
// the root stays below the cap. Half of the builds run beside another one.
func TestCapUnderLoad(t *testing.T) {
	needBuild(t)
	reg := serveRegistry(t)
	if reg == "" {
		t.Skip("no registry")
	}
	s := newSite(t)
	const limit = 60 << 20
	s.env = append(s.env, fmt.Sprintf("STRATA_GC_BYTES=%d", limit))
	s.base()
	s.write("Dockerfile", "FROM base\nARG N\nCOPY $N /big\nRUN for i in $(seq 200); do echo $i > /small-$i; done\n")
	build := func(n int, to ...string) {
		name := fmt.Sprintf("big-%d", n)
		data := make([]byte, 10<<20)
		rand.Read(data)
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o644); err != nil {
			t.Error(err)
		}
		defer os.Remove(filepath.Join(s.dir, name))
		r := s.run(append([]string{"build", "--progress=plain", "--build-arg", "N=" + name}, append(to, ".")...)...)
		if r.code != 0 {
			t.Errorf("build %d: %s", n, r.err[max(0, len(r.err)-600):])
		}
	}
	for n := 0; n < 10; n += 2 {
		var wg sync.WaitGroup
		wg.Go(func() { build(n, "--push", "-t", fmt.Sprintf("%s/x:%d", reg, n)) })
		wg.Go(func() {
			build(n+1, "-o", "type=image", "-o", "type=oci,dest="+filepath.Join(t.TempDir(), "oci.tar"))
		})
		wg.Wait()
	}
	s.wait("the root to be below its cap", func() bool { return s.realBytes() < limit })
	for line := range strings.Lines(s.ok("image", "ls").out) {
		if strings.Contains(line, "/x") {
			t.Errorf("a push has named an image: %s", line)
		}
	}
	s.ok("prune", "--all")
	if n := s.realBytes(); n > 12<<20 {
		t.Errorf("after prune --all the root has %d bytes; only the base image is needed", n)
	}
	s.healthy()
}
