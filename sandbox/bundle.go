package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
)

// bundle is the temporary directory of one run.
type bundle struct {
	id     string
	dir    string
	mounts []string // what is mounted in it, removed in reverse order
	data   string   // a file system in memory with the contents of Data mounts; "" = none
	n      int
}

func (s *Sandbox) newBundle() (*bundle, error) {
	b := &bundle{id: s.idPrefix() + strconv.FormatInt(s.ids.Add(1), 10)}
	b.dir = filepath.Join(s.root, "run", b.id)
	return b, os.MkdirAll(b.dir, 0o700)
}

func (b *bundle) file(name string) string { return filepath.Join(b.dir, name) }

func (b *bundle) writeFiles(p *plan, net *lease) error {
	hosts, err := hostsFile(p.Hostname, p.ExtraHosts, net.gateway)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{p.hosts: hosts, p.resolv: net.resolv.bytes()} {
		if err := writeFile(name, data, 0o644); err != nil {
			return diag.Errorf(diag.Unavailable, "cannot prepare the step: %w", err)
		}
	}
	return nil
}

// writeFile writes a file whose permissions do not depend on the umask.
func writeFile(name string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(name, data, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

func (b *bundle) writeConfig(s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err == nil {
		err = b.writeSecret("config.json", data)
	}
	if err != nil {
		return diag.Errorf(diag.Unavailable, "cannot write the container's configuration: %w", err)
	}
	return nil
}

// writeSecret writes a file of the bundle that holds variables, which may be secrets, into the memory of secrets.
func (b *bundle) writeSecret(name string, data []byte) error {
	err := b.openData()
	if err == nil {
		err = os.WriteFile(filepath.Join(b.data, name), data, 0o600)
	}
	if err == nil {
		err = os.Symlink(filepath.Join(b.data, name), b.file(name))
	}
	return err
}

// openData mounts a file system in memory that is not swapped out where the kernel can promise it.
func (b *bundle) openData() error {
	if b.data == "" {
		dir := b.file("data")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		mount := func(options string) error {
			return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
		}
		err := mount("mode=0700,noswap") // Linux 6.4
		if errors.Is(err, unix.EINVAL) {
			err = mount("mode=0700")
		}
		if err != nil {
			return fmt.Errorf("mount a file system in memory: %w", err)
		}
		b.data, b.mounts = dir, append(b.mounts, dir)
	}
	return nil
}

// writeData puts the content of a Data mount into the memory of secrets, and returns the file's path.
func (b *bundle) writeData(m Mount) (string, error) {
	if err := b.openData(); err != nil {
		return "", err
	}
	mode := m.Mode
	if mode == 0 {
		mode = 0o400
	}
	name := filepath.Join(b.data, b.next())
	if err := os.WriteFile(name, m.Data, 0o600); err != nil {
		return "", err
	}
	if err := os.Chown(name, m.UID, m.GID); err != nil {
		return "", err
	}
	return name, unix.Chmod(name, mode&0o7777)
}

// bindFile mounts an open file in the bundle, because runtimes take paths only and mount from a namespace of their own.
func (b *bundle) bindFile(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	at := b.file("bind-" + b.next())
	if st.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fdPath(f.Fd()), at, "", unix.MS_BIND, ""); err != nil {
		return "", os.NewSyscallError("mount", err)
	}
	b.mounts = append(b.mounts, at)
	return at, nil
}

func (b *bundle) next() string {
	b.n++
	return strconv.Itoa(b.n)
}

// remove unmounts and removes the bundle. What cannot be unmounted is left to Sweep, because removing would go into it.
func (b *bundle) remove(log *slog.Logger) {
	for _, m := range slices.Backward(b.mounts) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			log.Error("cannot unmount what a step used", "path", m, "error", err)
			return
		}
	}
	if err := os.RemoveAll(b.dir); err != nil {
		log.Error("cannot remove the files of a step", "path", b.dir, "error", err)
	}
}
