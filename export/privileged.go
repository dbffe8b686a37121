package export

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/tree"
)

// fewLeft is how many paths a warning names.
const fewLeft = 5

// leftOut reports whether a file is not written: a device node would give whoever may open it the device of this machine. Setuid
// and setgid bits are left out of what is written.
func (c *copying) leftOut(e *tree.Entry, rel string) bool {
	kind := e.Mode & unix.S_IFMT
	device := kind == unix.S_IFCHR || kind == unix.S_IFBLK
	if c.dst.all || !device && c.dst.mode(e.Mode) == e.Mode&0o7777 {
		return false
	}
	c.leave(rel)
	return device
}

// leave remembers a file that was not written, or not with all that it is in the result.
func (c *copying) leave(rel string) {
	c.mu.Lock()
	c.left = append(c.left, rel)
	c.mu.Unlock()
}

// attributes copies the extended attributes of a file: those of users, and those that give rights if they were asked for.
func (c *copying) attributes(from, to *os.File) error {
	var list [4096]byte
	n, err := unix.Flistxattr(int(from.Fd()), list[:])
	if err != nil || n == 0 {
		return nil // a file system without attributes, or a list that no layer can hold
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		capability := name == capabilityAttr
		switch {
		case capability && !c.dst.all:
			c.leave(from.Name())
			continue
		case !capability && !strings.HasPrefix(name, "user."):
			continue
		}
		var value [64 << 10]byte // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(int(from.Fd()), name, value[:])
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err == unix.EOPNOTSUPP && !capability {
			return nil // the directory is on a file system without them
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}

const capabilityAttr = "security.capability"

// warn says what was left out.
func (c *copying) warn() {
	if len(c.left) == 0 {
		return
	}
	slices.Sort(c.left)
	named := slices.Compact(c.left)
	more := ""
	if n := len(named) - fewLeft; n > 0 {
		named, more = named[:fewLeft], fmt.Sprintf(" and %d more", n)
	}
	c.env.Events.Emit(event.Event{Kind: event.Warn, Vertex: c.env.Vertex, Warning: &diag.Warning{
		Msg:    "device nodes, setuid and setgid bits and file capabilities were left out: " + strings.Join(named, ", ") + more,
		Detail: []string{"write them with -o type=local,dest=DIR,privileged=true into a directory of the user who builds"},
	}})
}
