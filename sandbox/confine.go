package sandbox

import (
	"bytes"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/sandbox/spawn"
)

// Steps is how the operator of a machine confines all steps. The zero value is the default.
type Steps struct {
	Capabilities    []string // of steps that are not insecure, such as CAP_CHOWN; nil = Docker's set
	NoNewPrivileges bool     // programs of steps that are not insecure gain no rights by being set-uid or by file capabilities
	Only64Bit       bool     // system calls of 32-bit programs kill them, in steps that are not insecure
	AppArmor        string   // a profile that the kernel has, for steps that are not insecure; "" = none
	PIDs            int64    // processes of a step that asks for no limit; 0 = 4096, -1 = no limit
	Memory          int64    // bytes of all steps together; 0 = what leaves the engine alive, -1 = no limit
	ClientMemory    int64    // bytes of all steps of one client; 0 = half of Memory, -1 = no limit
}

// normal fills in the defaults, and refuses what does not exist.
func (s Steps) normal() (Steps, error) {
	if s.Capabilities == nil {
		s.Capabilities = defaultCaps
	} else {
		var names []string
		for _, c := range s.Capabilities {
			name := "CAP_" + strings.TrimPrefix(strings.ToUpper(c), "CAP_")
			if bits, err := capBits([]string{name}); err != nil || bits == 0 {
				err := diag.Errorf(diag.Invalid, "unknown capability %q", c)
				if near := diag.Suggest(name, knownCaps()); near != "" {
					err = err.WithHint("did you mean %s?", near)
				}
				return s, err
			}
			names = append(names, name)
		}
		slices.Sort(names)
		s.Capabilities = slices.Compact(names)
	}
	if s.PIDs == 0 {
		s.PIDs = defaultPIDs
	}
	if least := min(s.PIDs, s.Memory, s.ClientMemory); least < -1 {
		return s, diag.Errorf(diag.Invalid, "a limit of all steps is %d", least).WithHint("-1 is no limit, 0 the default")
	}
	return s, s.checkAppArmor("/sys/module/apparmor/parameters/enabled")
}

func knownCaps() []string {
	var out []string
	for _, c := range capability.ListKnown() {
		out = append(out, "CAP_"+strings.ToUpper(c.String()))
	}
	return out
}

// checkAppArmor refuses a profile where the kernel has none. The file says whether it has.
func (s *Steps) checkAppArmor(enabled string) error {
	if s.AppArmor == "" {
		return nil
	}
	if strings.ContainsAny(s.AppArmor, " \x00\n") {
		return diag.Errorf(diag.Invalid, "invalid name %q of an AppArmor profile", s.AppArmor)
	}
	if data, err := os.ReadFile(enabled); err != nil || !bytes.HasPrefix(data, []byte("Y")) {
		return diag.Errorf(diag.Unsupported, "steps are to have the AppArmor profile %q, but AppArmor is not enabled on this machine", s.AppArmor).
			WithHint("enable AppArmor, or do not ask for a profile")
	}
	return nil
}

// stepOOMScore makes the kernel, short of memory, end a step before it ends the engine.
const stepOOMScore = 500

// oomScore is the oom_score_adj of steps: not below this process's.
func oomScore() int {
	data, _ := os.ReadFile("/proc/self/oom_score_adj")
	own, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return max(own, stepOOMScore)
}

// kernelSettings writes what a process tells the kernel about itself by files of /proc. All descriptors above 2 are closed by now,
// so that the next one is 3. Nothing is mounted below /proc but what the engine has put there.
func (j *jail) kernelSettings(p *spawn.Program) {
	s := j.spec.Process
	write := func(what string, value string, files ...string) {
		for i, file := range files {
			open := p.Call(what, unix.SYS_OPENAT, atCwd, p.String(file), unix.O_WRONLY, 0).OK(len(files) - i)
			if i < len(files)-1 {
				open.On(unix.ENOENT, 1)
			}
		}
		p.Call(what, unix.SYS_WRITE, 3, p.String(value), uintptr(len(value)))
		p.Call(what, unix.SYS_CLOSE, 3)
	}
	if s.OOMScoreAdj != nil {
		write("set the OOM score", strconv.Itoa(*s.OOMScoreAdj), "/proc/self/oom_score_adj")
	}
	if s.ApparmorProfile != "" {
		write("set the AppArmor profile "+s.ApparmorProfile, "exec "+s.ApparmorProfile, "/proc/thread-self/attr/apparmor/exec", "/proc/thread-self/attr/exec")
	}
}

// ceilings limit the memory of all steps together, so that they and not the engine are short of it, and that of all steps of a
// client, so that the steps of others are not killed for it.
func (h *host) ceilings(p *plan) error {
	all := path.Dir(p.cgroup)
	if p.Client == "" {
		return h.ceiling(all, h.memory)
	}
	if err := h.ceiling(path.Dir(all), h.memory); err != nil {
		return err
	}
	return h.ceiling(all, h.clientMemory)
}

// ceiling limits the memory of a group above steps. It is made before the first step, and limited when it is made.
func (h *host) ceiling(parent string, memory int64) error {
	c := h.cgroups
	root := c.controllers["memory"]
	if root == "" || memory <= 0 {
		return nil
	}
	dir := filepath.Join(root, parent)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := c.makeDir(root, parent); err != nil {
		return err
	}
	file := "memory.max"
	if !c.unified {
		file = "memory.limit_in_bytes"
		_ = writeSetting(filepath.Join(dir, "memory.use_hierarchy"), "1") // as it always is since Linux 5.11
	}
	err := writeSetting(filepath.Join(dir, file), strconv.FormatInt(memory, 10))
	if errors.Is(err, unix.ENOENT) {
		return diag.Errorf(diag.Unsupported, "cannot limit the memory of steps: %w", err)
	}
	return err
}

// stepMemory is the default ceiling: the machine's memory, or what the groups of this machine may use, less what the engine needs.
func stepMemory(total int64) int64 {
	reserve := min(max(total/10, 256<<20), 2<<30)
	return max(total-reserve, total/2)
}

// totalMemory is the memory of this machine, or of the container that this process takes for one. 0 = unknown.
func totalMemory(c *cgroups) int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	total := int64(info.Totalram) * int64(info.Unit)
	for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
		data, _ := os.ReadFile(filepath.Join(c.controllers["memory"], file))
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 {
			total = min(total, n)
		}
	}
	return total
}
