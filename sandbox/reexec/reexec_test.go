package reexec

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const childEnv = "STRATA_TEST_PROTECTED"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if len(os.Args) == 3 {
			fmt.Println("pid", os.Getpid())
		}
		if err := Protect(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		name, err := Executable()
		fmt.Println(name, err)
		comm, err := os.ReadFile("/proc/self/comm")
		fmt.Println(strings.TrimSpace(string(comm)), err)
		fmt.Println(os.Args[1:], Check())
		var limit unix.Rlimit
		fmt.Println(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit), unix.Faccessat(unix.AT_FDCWD, executable, unix.W_OK, 0))
		fds, err := os.ReadDir("/proc/self/fd")
		kept := slices.ContainsFunc(fds, func(e os.DirEntry) bool { link, _ := os.Readlink("/proc/self/fd/" + e.Name()); return link == "/" })
		fmt.Println(kept, err)
		if len(os.Args) == 3 { // the same from a process that is protected
			cmd, done, err := Command("d")
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			defer done()
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				fmt.Println(err)
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A protected program is the same process with the same arguments, and knows its own name.
func TestProtect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if Check() == nil {
		t.Fatal("an ordinary executable passes for a protected one")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(childEnv, "1")
	t.Setenv(nameVar, "/a/lie")
	comm := filepath.Base(exe)
	check := func(cmd *exec.Cmd, times int) {
		t.Helper()
		out, err := cmd.CombinedOutput()
		pid := fmt.Sprintf("pid %d\n", cmd.Process.Pid)
		is := func(args string) string {
			return exe + " <nil>\n" + comm[:min(15, len(comm))] + " <nil>\n[" + args + "] <nil>\n<nil> read-only file system\nfalse <nil>\n"
		}
		want := strings.Repeat(pid, times) + is("a b c") + is("d")
		if err != nil || string(out) != want {
			t.Errorf("%v\n%s\nwant\n%s", err, out, want)
		}
	}
	check(exec.Command(exe, "a", "b c"), 2) // before and after
	cmd, done, err := Command("a", "b c")
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	check(cmd, 1)
}

// A variable of the environment does not make an ordinary program a protected one.
func TestExecutable(t *testing.T) {
	t.Setenv(nameVar, "/a/lie")
	exe, err := os.Executable()
	if got, gotErr := Executable(); got != exe || err != nil || gotErr != nil {
		t.Errorf("%s %v %v", got, err, gotErr)
	}
}
