package sandbox

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// maxUserFile is how many bytes of /etc/passwd and /etc/group are looked at.
const maxUserFile = 10 << 20

// User is who a command runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	Home     string   // "/" if /etc/passwd does not know the user
}

// ResolveUser finds the user that USER means in a root file system. The forms are those of Docker:
//
//	""         root, with the groups that /etc/group gives it
//	name       uid, gid and home from /etc/passwd, supplementary groups from /etc/group
//	uid        the same if /etc/passwd knows the number, else group 0 and no more groups
//	x:group    any of the above, but the group by name or number and no supplementary groups
//
// Where there is no such file, the name root is 0. Numbers from 2^31 and signed ones are refused. The two files are read
// without leaving the root and without blocking on special files; what is not a regular file, or is above 10 MiB, is an error of kind diag.Invalid.
func ResolveUser(rootfs, spec string) (User, error) {
	name, group, _ := strings.Cut(spec, ":")
	for _, part := range []string{name, group} {
		if err := checkID(part); err != nil {
			return User{}, err
		}
	}
	passwd, err := openUserFile(rootfs, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	defer passwd.Close()
	groups, err := openUserFile(rootfs, "/etc/group")
	if err != nil {
		return User{}, err
	}
	defer groups.Close()
	if name == "" || name == "root" && passwd.f == nil {
		name = "0"
	}
	if group == "root" && groups.f == nil {
		group = "0"
	}
	found, err := user.GetExecUser(name+":"+group, &user.ExecUser{Home: "/"}, passwd, groups)
	if err := errors.Join(passwd.err, groups.err); err != nil {
		return User{}, err
	}
	if err != nil {
		return User{}, lookupError(spec, name, group, err)
	}
	if !validID(found.Uid) || !validID(found.Gid) || slices.ContainsFunc(found.Sgids, func(g int) bool { return !validID(g) }) {
		return User{}, lookupError(spec, name, group, user.ErrRange)
	}
	u := User{UID: uint32(found.Uid), GID: uint32(found.Gid), Home: found.Home}
	if u.Home == "" {
		u.Home = "/"
	}
	for _, g := range found.Sgids {
		u.Groups = append(u.Groups, uint32(g))
	}
	return u, nil
}

// validID reports whether a number of /etc/passwd or /etc/group can be an id.
func validID(n int) bool { return n >= 0 && n < 1<<31 }

// checkID refuses numbers that no id can be. What is not a number is a name, and may be all right.
func checkID(s string) error {
	if s == "" {
		return nil
	}
	digits := strings.TrimLeft(s, "+-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return nil
	}
	if len(digits) != len(s) {
		return diag.Errorf(diag.Invalid, "invalid user or group id %q", s).WithHint("write the number without a sign")
	}
	if n, err := strconv.ParseUint(digits, 10, 64); err != nil || n >= 1<<31 {
		return diag.Errorf(diag.Invalid, "user or group id %s is out of range", s).WithHint("ids go from 0 to 2147483647")
	}
	return nil
}

func lookupError(spec, name, group string, err error) error {
	switch {
	case errors.Is(err, user.ErrRange):
		return diag.Errorf(diag.Invalid, "the user %q has an id out of range", spec).WithHint("ids go from 0 to 2147483647")
	case errors.Is(err, user.ErrNoPasswdEntries):
		return diag.Errorf(diag.Invalid, "no user %q in the image's /etc/passwd", name).WithHint("add the user with useradd or adduser first, or give a number")
	case errors.Is(err, user.ErrNoGroupEntries):
		return diag.Errorf(diag.Invalid, "no group %q in the image's /etc/group", group).WithHint("add the group with groupadd or addgroup first, or give a number")
	}
	return diag.Errorf(diag.Invalid, "cannot look up the user %q: %w", spec, err)
}

// userFile reads a file up to a limit. It keeps its error, because the parser above does not always hand it on.
type userFile struct {
	f    *os.File // nil if there is none
	name string
	left int
	err  error
}

func openUserFile(rootfs, name string) (*userFile, error) {
	at, err := OpenInRoot(rootfs, name, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return &userFile{name: name}, nil
	}
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the image's %s: %w", name, err)
	}
	defer at.Close()
	// Opening a device or a FIFO can block, so that the kind is looked at first.
	if st, err := at.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, diag.Errorf(diag.Invalid, "the image's %s is not a regular file", name)
	}
	f, err := os.Open(fdPath(at.Fd()))
	if err != nil {
		return nil, diag.Errorf(diag.Invalid, "the image's %s: %w", name, err)
	}
	return &userFile{f: f, name: name, left: maxUserFile}, nil
}

func (u *userFile) Read(p []byte) (int, error) {
	switch {
	case u.f == nil:
		return 0, io.EOF
	case u.left <= 0:
		u.err = diag.Errorf(diag.Invalid, "the image's %s is above %d bytes", u.name, maxUserFile)
		return 0, u.err
	}
	n, err := u.f.Read(p[:min(len(p), u.left)])
	u.left -= n
	return n, err
}

func (u *userFile) Close() {
	if u.f != nil {
		u.f.Close()
	}
}
