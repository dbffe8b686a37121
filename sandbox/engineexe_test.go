package sandbox

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostileEnv makes the test binary, in a step, attack all executables that it can reach.
const hostileEnv = "STRATA_TEST_HOSTILE"

// attackExecutables is what an image's loader does when it has control of a process of the engine's executable: it tries to keep
// a way to write to it. "Text file busy" is no defence: the step waits until nobody runs the file.
func attackExecutables() {
	names, _ := filepath.Glob("/proc/[0-9]*/exe")
	names = append(names, "/proc/self/exe", fmt.Sprintf("/proc/%d/exe", os.Getppid()))
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(link, "/") && !strings.HasPrefix(link, "/proc/") {
			names = append(names, "/proc/self/fd/"+fd.Name())
		}
	}
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		_, writeErr := os.OpenFile(name, os.O_WRONLY, 0)
		fmt.Printf("access %s: %v\n", name, unix.Faccessat(unix.AT_FDCWD, name, unix.W_OK, 0))
		fmt.Printf("chmod %s: %v\n", name, unix.Chmod(name, 0o4755))
		fmt.Printf("chown %s: %v\n", name, unix.Chown(name, 0, 0))
		fmt.Printf("times %s: %v\n", name, unix.UtimesNanoAt(unix.AT_FDCWD, name, make([]unix.Timespec, 2), 0))
		fmt.Printf("link %s: %v\n", name, unix.Linkat(unix.AT_FDCWD, name, unix.AT_FDCWD, "/stolen", unix.AT_SYMLINK_FOLLOW))
		fmt.Printf("write %s: %v\n", name, writeErr)
	}
}

// An image names the engine's executable as its program: as it is, by a symbolic link, as the interpreter of a script. What runs
// then in the step, here a hostile program, must not be able to change the executable, neither now nor when the engine has ended.
func TestAStepCannotWriteToTheEngine(t *testing.T) {
	b := newBox(t, "")
	if b.native == nil {
		t.Fatalf("the built-in runtime: %v", b.lacks)
	}
	b.write("script", "#!/proc/self/exe\n")
	os.Chmod(filepath.Join(b.rootfs, "script"), 0o755)
	if err := os.Symlink("/proc/self/exe", filepath.Join(b.rootfs, "bin/link")); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"/proc/self/exe", "/script", "/bin/link", "/proc/thread-self/exe", "/proc/1/exe"} {
		t.Run(strings.ReplaceAll(program, "/", "_"), func(t *testing.T) {
			out, exit := b.sh(t, "", func(s *Spec) {
				s.Args, s.Env = []string{program}, append(s.Env, hostileEnv+"=1")
				s.Mounts = append(s.Mounts, loaderMounts(t)...)
			})
			if exit.Code != 0 || !strings.Contains(out, "access /proc/self/exe") {
				t.Fatalf("the hostile program did not run: %+v\n%s", exit, out)
			}
			for line := range strings.Lines(out) {
				// A hard link would be in another mount than the executable.
				held := strings.Contains(line, "read-only file system") || strings.Contains(line, "invalid cross-device link") ||
					strings.HasPrefix(line, "write ") && strings.Contains(line, "text file busy")
				if !held {
					t.Errorf("a step can change the engine's executable: %s", line)
				}
			}
		})
	}
}

// loaderMounts are what a test binary needs in a container if it is not static.
func loaderMounts(t *testing.T) []Mount {
	t.Helper()
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []Mount
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		for _, dir := range []string{"/lib", "/lib64", "/usr/lib"} {
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				out = append(out, Mount{Type: Bind, Source: real, Target: dir, ReadOnly: true})
			}
		}
	}
	return out
}
