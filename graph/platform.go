package graph

import (
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/strata-build/strata/diag"
)

var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// ParsePlatform reads "os", "arch", "os/arch" or "os/arch/variant"; the os may carry a version, "windows(10.0.17763)".
// Other names of architectures are turned into Go's: "x86_64" is amd64, "aarch64" arm64.
func ParsePlatform(s string) (Platform, error) {
	bad := func() (Platform, error) {
		err := diag.Errorf(diag.Invalid, "%q is not a platform", s)
		return Platform{}, err.WithHint("write it as os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7")
	}
	parts := strings.Split(s, "/")
	var p Platform
	if head, rest, ok := strings.Cut(parts[0], "("); ok {
		version, tail, ok := strings.Cut(rest, ")")
		if !ok || tail != "" && !strings.HasPrefix(tail, "+") {
			return bad()
		}
		parts[0], p.OSVersion = head, version
		if tail != "" {
			p.OSFeatures = strings.Split(tail[1:], "+")
		}
	}
	for _, part := range parts {
		if !platformPart.MatchString(part) {
			return bad()
		}
	}
	switch len(parts) {
	case 1:
		switch w := strings.ToLower(parts[0]); {
		case isOS(w):
			p.OS, p.Architecture = w, runtime.GOARCH
		case isArch(w):
			p.OS, p.Architecture = "linux", w
		default:
			return bad()
		}
	case 2:
		p.OS, p.Architecture = strings.ToLower(parts[0]), strings.ToLower(parts[1])
	case 3:
		p.OS, p.Architecture, p.Variant = strings.ToLower(parts[0]), strings.ToLower(parts[1]), strings.ToLower(parts[2])
	default:
		return bad()
	}
	return NormalizePlatform(p), nil
}

func isOS(s string) bool {
	switch s {
	case "linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "illumos", "aix", "android", "dragonfly", "plan9", "wasip1", "js":
		return true
	}
	return false
}

// Architectures lists the architectures that there are programs for, by their names in platforms.
func Architectures() []string {
	return []string{"386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle", "mips64", "mips64le", "riscv64", "s390x", "loong64", "wasm"}
}

func isArch(s string) bool {
	switch s {
	case "i386", "x86_64", "x86-64", "aarch64", "armhf", "armel":
		return true
	}
	return slices.Contains(Architectures(), s)
}

// NormalizePlatform returns p with the usual names: x86_64 is amd64, aarch64 arm64, and the variant that an architecture has
// anyway is left out (arm64's v8, amd64's v1) or filled in (arm's v7). The rules are those of Docker's images.
func NormalizePlatform(p Platform) Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686", "x86":
		p.Architecture, p.Variant = "386", ""
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if p.Variant != "" && p.Variant[0] >= '0' && p.Variant[0] <= '9' {
		p.Variant = "v" + p.Variant
	}
	switch {
	case p.Architecture == "arm64" && p.Variant == "v8", p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// FormatPlatform is the inverse of ParsePlatform.
func FormatPlatform(p Platform) string {
	s := p.OS
	if p.OSVersion != "" {
		s += "(" + p.OSVersion + ")"
		for _, f := range p.OSFeatures {
			s += "+" + f
		}
	}
	s += "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
