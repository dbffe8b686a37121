package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/strata-build/strata/internal/faultdisk"
)

// TestDiskErrors lets the disk fail for a moment while a step's files are written back. No build may believe these files, and
// a build that has said success has its image.
func TestDiskErrors(t *testing.T) {
	needBuild(t)
	d := faultdisk.New(t, 256<<20, "ext4")
	s := newSiteAt(t, filepath.Join(d.Dir, "state"))
	s.base()
	s.write("Slow", "FROM base\nRUN yes strata | head -c 30000000 > /big && echo writ''ten && sleep 2.5\n")
	s.write("Quick", "FROM base\nRUN echo quick > /quick\n")
	s.write("Check", "FROM slow\nRUN yes strata | head -c 30000000 | cmp - /big\n")

	slow := s.start("build", "--progress=plain", "-f", "Slow", "-t", "slow", ".")
	slow.until("written")
	d.FailWritesOf("strata\nstrata", 5)
	quick := s.run("build", "--progress=plain", "-f", "Quick", "-t", "quick", ".")
	s.wait("the disk to fail", func() bool { return d.Failed() >= 5 })
	first := slow.result()
	time.Sleep(2 * time.Second) // the flush after a success
	for name, r := range map[string]result{"slow": first, "quick": quick} {
		have := s.run("image", "inspect", name).code == 0
		if r.code == 0 && !have {
			t.Errorf("the build of %s said success, and the image is gone", name)
		}
		if r.code != 0 {
			s.fails(r, "the disk lost data while this was being made: input/output error", "hint: check the disk")
		}
	}
	if first.code == 0 {
		t.Errorf("a step whose files the disk has lost is believed:\n%s", first.err)
	}
	d.DropCaches()
	s.ok("build", "--progress=plain", "-f", "Slow", "-t", "slow", ".")
	s.ok("build", "--progress=plain", "-f", "Check", ".")
	s.ok("build", "--progress=plain", "-f", "Quick", "-t", "quick", ".")
	s.healthy()
}
