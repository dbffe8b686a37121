package sandbox

import (
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountFlags are the mount options that are flags, with what they set or clear.
var mountFlags = map[string]struct {
	set, clear uintptr
}{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY},
	"nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID},
	"nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC},
	"relatime": {unix.MS_RELATIME, 0}, "noatime": {unix.MS_NOATIME, 0}, "strictatime": {unix.MS_STRICTATIME, 0},
	"bind": {unix.MS_BIND, 0}, "rbind": {unix.MS_BIND | unix.MS_REC, 0},
	"private": {0, 0}, "rprivate": {0, 0}, // as every mount is
}

// mountOptions are the options of a mount as system calls take them.
type mountOptions struct {
	flags   uintptr // MS_…
	cleared uintptr
	data    string
}

// attributes are those of mount_setattr(2) for the flags.
func attributes(flags uintptr) uint64 {
	var out uint64
	for ms, attr := range map[uintptr]uint64{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID, unix.MS_NODEV: unix.MOUNT_ATTR_NODEV, unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC,
		unix.MS_NOATIME: unix.MOUNT_ATTR_NOATIME, unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME,
	} {
		if flags&ms != 0 {
			out |= attr
		}
	}
	return out
}

// parseOptions translates options. Words that are neither flags nor data of the file system are not supported.
func parseOptions(m specs.Mount) (mountOptions, error) {
	var o mountOptions
	var data []string
	for _, word := range m.Options {
		f, known := mountFlags[word]
		switch {
		case known:
			o.flags, o.cleared = o.flags&^f.clear|f.set, o.cleared&^f.set|f.clear
		case m.Type != "bind" && (strings.Contains(word, "=") || word == "newinstance"):
			data = append(data, word)
		default:
			return o, fmt.Errorf("the option %q of the mount at %s: %w", word, m.Destination, errors.ErrUnsupported)
		}
	}
	o.data = strings.Join(data, ",")
	return o, nil
}

// mountTypes are the file systems that can be mounted.
var mountTypes = []string{"bind", "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup"}
