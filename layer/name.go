package layer

import (
	"archive/tar"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// Names with a meaning in a layer tar. Source: image-spec layer.md, "Whiteouts"; the plnk directory is AUFS's.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
	aufsLinks      = ".wh..wh.plnk"
)

const (
	maxPath  = 4095 // PATH_MAX without the final NUL: longer names cannot be opened by most programs
	maxDepth = 1000 // components of a path
	maxLinks = 40   // symlinks followed for one path, as the kernel does
)

// cleanName turns a name of the tar into a clean path relative to the root: "." for the root itself. Leading slashes are
// dropped, as every runtime does; a path that climbs above the root is refused.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", diag.Errorf(diag.Invalid, "%q: a NUL byte in a name", name)
	}
	rel := strings.TrimLeft(name, "/")
	p := path.Clean(rel)
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", diag.Errorf(diag.Invalid, "%q: leads out of the layer", name)
	}
	if len(p) > maxPath {
		return "", diag.Errorf(diag.Invalid, "a name of %d bytes (%.60q…): at most %d are possible", len(p), p, maxPath)
	}
	if strings.Count(p, "/") >= maxDepth {
		return "", diag.Errorf(diag.Exhausted, "%.60q…: more than %d directories deep", p, maxDepth)
	}
	return p, nil
}

// split cuts a clean path into its directory ("." at the top) and its last name.
func split(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return ".", p
}

func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return dir == "." || p == dir || len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// marker says what a base name means in a layer tar.
type marker int

const (
	noMarker marker = iota
	whiteout
	opaque
	ignored // AUFS's own files
)

// parseMarker splits a path with a whiteout's name into what it means and the path that it hides.
func parseMarker(p string) (marker, string, error) {
	dir, base := split(p)
	if strings.HasPrefix(p, aufsLinks) && (len(p) == len(aufsLinks) || p[len(aufsLinks)] == '/') {
		return noMarker, p, nil // kept until the end: hard links lead there
	}
	if strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		return 0, "", diag.Errorf(diag.Invalid, "%q: something inside of a whiteout", p)
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return noMarker, p, nil
	}
	if base == opaqueMarker {
		return opaque, dir, nil
	}
	if strings.HasPrefix(base, aufsPrefix) {
		return ignored, p, nil
	}
	hidden := base[len(whiteoutPrefix):]
	if hidden == "" || hidden == "." || hidden == ".." {
		return 0, "", diag.Errorf(diag.Invalid, "%q: a whiteout of nothing", p)
	}
	return whiteout, join(dir, hidden), nil
}

// Marker reports whether a path in a layer tar is a marker, and what it hides: a path and all below it, or, of an opaque
// directory, only what is below. Markers of AUFS hide nothing: "".
func Marker(p string) (hides string, below, ok bool) {
	switch m, hidden, err := parseMarker(p); {
	case err != nil || m == noMarker:
		return "", false, false
	case m == ignored:
		return "", false, true
	default:
		return hidden, m == opaque, true
	}
}

// checkHeader refuses numbers that the kernel would cut short into something else.
func checkHeader(h *tar.Header) error {
	bad := func(what string, v int64) error {
		return diag.Errorf(diag.Invalid, "%q: %s %d is out of range", h.Name, what, v)
	}
	// The last id means "leave the owner as it is" to chown.
	if h.Uid < 0 || int64(h.Uid) >= math.MaxUint32 {
		return bad("uid", int64(h.Uid))
	}
	if h.Gid < 0 || int64(h.Gid) >= math.MaxUint32 {
		return bad("gid", int64(h.Gid))
	}
	if h.Size < 0 {
		return bad("size", h.Size)
	}
	if h.Typeflag != tar.TypeChar && h.Typeflag != tar.TypeBlock {
		return nil
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 {
		return bad("device major", h.Devmajor)
	}
	if h.Devminor < 0 || h.Devminor >= 1<<20 {
		return bad("device minor", h.Devminor)
	}
	if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
		return diag.Errorf(diag.Invalid, "%q: a character device 0:0 would delete files of the layers below", h.Name)
	}
	return nil
}

// keepXattr reports whether an extended attribute of a tar is applied. Overlayfs's own would forge its structures, the
// labels of SELinux belong to the machine.
func keepXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."):
		return true
	}
	switch name {
	case "security.capability", "security.ima", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return false
}

// sysError turns an errno of a system call on path into an error with a kind.
func sysError(op, p string, err error) error {
	errno, ok := err.(unix.Errno)
	if !ok {
		return err
	}
	e := func(k diag.Kind) *diag.Error { return diag.Errorf(k, "%s %q: %w", op, p, errno) }
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return e(diag.Exhausted).WithHint("free some disk space or inodes")
	case unix.EMFILE, unix.ENFILE:
		return e(diag.Exhausted).WithHint("raise the limit on open files")
	case unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.EINVAL, unix.EMLINK:
		return e(diag.Invalid)
	case unix.EPERM, unix.EACCES:
		return e(diag.Denied)
	case unix.EROFS:
		return e(diag.Unavailable)
	}
	return e(diag.Internal)
}
