package sandbox

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// busy counts the runs of each client in the control groups above those of steps.
type busy struct {
	mu     sync.Mutex
	groups map[string]map[string]int // client -> group -> runs
}

// begin notes a run until the returned function is called.
func (b *busy) begin(client, group string) (end func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.groups == nil {
		b.groups = map[string]map[string]int{}
	}
	if b.groups[client] == nil {
		b.groups[client] = map[string]int{}
	}
	b.groups[client][group]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		of := b.groups[client]
		if of[group]--; of[group] == 0 {
			delete(of, group)
		}
		if len(of) == 0 {
			delete(b.groups, client)
		}
	}
}

func (b *busy) of(client string) (groups []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for g := range b.groups[client] {
		groups = append(groups, g)
	}
	return groups
}

// Unlinked returns how many bytes of disks files have that steps of a client use and that have no name any more. Nothing else
// finds them: a step can open a file, remove its name, and fill the disk by the descriptor or by a mapping.
func (s *Sandbox) Unlinked(ctx context.Context, client string) int64 {
	s.mu.Lock()
	h := s.host
	s.mu.Unlock()
	if h == nil {
		return 0 // nothing has run
	}
	u := unlinked{seen: map[[2]uint64]bool{}}
	looked := map[int]bool{}
	for _, group := range s.busy.of(client) {
		for _, dir := range h.cgroups.dirs(group) {
			for _, pid := range pids(dir) {
				if ctx.Err() != nil {
					return u.bytes
				}
				if !looked[pid] {
					looked[pid] = true
					u.process(pid)
				}
			}
		}
	}
	return u.bytes
}

// unlinked adds up files without a name.
type unlinked struct {
	bytes int64
	seen  map[[2]uint64]bool // by device and inode
}

// process adds what a process uses. Threads can have descriptors of their own.
func (u *unlinked) process(pid int) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	u.links(filepath.Join(proc, "map_files"))
	tasks, _ := os.ReadDir(filepath.Join(proc, "task"))
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil && (tid == pid || !sameFiles(pid, tid)) {
			u.links(filepath.Join(proc, "task", t.Name(), "fd"))
		}
	}
}

// sameFiles reports whether two threads share their descriptors.
func sameFiles(a, b int) bool {
	const kcmpFiles = 2
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpFiles, 0, 0, 0)
	return errno == 0 && order == 0
}

// links adds the files that the links in a directory of /proc lead to.
func (u *unlinked) links(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return // the process has ended
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1000)
		for _, name := range names {
			u.file(filepath.Join(dir, name))
		}
		if err != nil {
			return
		}
	}
}

func (u *unlinked) file(link string) {
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 0 {
		return
	}
	id := [2]uint64{st.Dev, st.Ino}
	var on unix.Statfs_t
	if u.seen[id] || unix.Statfs(link, &on) != nil || inMemory(&on) {
		return
	}
	u.seen[id] = true
	u.bytes += st.Blocks * 512
}

func inMemory(fs *unix.Statfs_t) bool {
	return fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.HUGETLBFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
}
