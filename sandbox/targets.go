package sandbox

import (
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// kernelFiles are the directories in which a step mounts nothing. What is hidden or read-only there is found by its name, and
// programs, runtimes included, trust what they read there.
var kernelFiles = []string{"/proc", "/sys"}

// inKernelFiles returns the one of kernelFiles that a clean path is in, or "".
func inKernelFiles(at string) string {
	if i := slices.IndexFunc(kernelFiles, func(dir string) bool { return below(at, dir) }); i >= 0 {
		return kernelFiles[i]
	}
	return ""
}

// checkTargets finds out where the step's mounts will be, and refuses those that lead into the kernel's files. The mounts must be
// sorted. It looks before anything is mounted, so that every runtime gets the same answer; the built-in one looks again at
// what it has opened.
func (p *plan) checkTargets() error {
	for _, m := range p.mounts {
		at, err := p.leadsTo(m.Destination)
		if err != nil {
			return diag.Errorf(diag.Invalid, "the mount at %s: %w", m.Destination, err)
		}
		if dir := inKernelFiles(at); dir != "" {
			return kernelTarget(m.Destination, dir)
		}
		p.targets = append(p.targets, at)
	}
	return nil
}

func kernelTarget(target, dir string) error {
	return diag.Errorf(diag.Invalid, "cannot mount at %q: the target is in %s, which belongs to the kernel", target, dir).
		WithHint("choose a target outside of /proc and /sys; symbolic links of the image count")
}

// maxLinks bounds the symbolic links of one path, as the kernel does.
const maxLinks = 40

// leadsTo follows the symbolic links of a path of the container, those in the mounts that are in p.targets included, and
// returns the clean path that is meant.
func (p *plan) leadsTo(name string) (string, error) {
	at, links := "/", 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		elem := rest[0]
		rest = rest[1:]
		switch elem {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, elem)
		link, err := os.Readlink(p.hostPath(at, elem))
		if err != nil || slices.Contains(p.targets, next) { // not a link, or not there, or covered by a mount
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if path.IsAbs(link) {
			at = "/"
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return at, nil
}

// hostPath is where on this machine an entry of a directory of the container is. Of a directory in memory it names nothing.
func (p *plan) hostPath(dir, entry string) string {
	source, depth := path.Join(p.RootFS, dir), 0
	for i, at := range p.targets {
		if below(dir, at) && len(at) > depth {
			depth = len(at)
			if source = ""; p.mounts[i].Type == "bind" {
				source = path.Join(p.mounts[i].Source, strings.TrimPrefix(dir, at))
			}
		}
	}
	if source == "" {
		return ""
	}
	return path.Join(source, entry)
}

// replacesNull reports whether a mount of the step's own is at /dev or at /dev/null.
func (p *plan) replacesNull() bool {
	return slices.ContainsFunc(p.targets, func(at string) bool { return at == "/dev" || at == "/dev/null" })
}
