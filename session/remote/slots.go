package remote

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxSlots is how many directories of clients are kept. The one that was used longest ago goes first.
const maxSlots = 64

// outgoing begins the names of directories that hold an output until the client has it.
const outgoing = "out-"

// slots are the kept directories: ROOT/KEY.N/fs, and beside it what it was filtered with.
type slots struct {
	root string
	mu   sync.Mutex
	busy map[string]bool // by name
	bad  map[string]bool // of these: the disk may have damaged them
}

// Slot is one kept directory.
type Slot struct {
	Name  string
	Size  int64 // bytes of the files
	Used  time.Time
	InUse bool
}

func openSlots(root string) (*slots, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(root, outgoing+"*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	return &slots{root: root, busy: map[string]bool{}, bad: map[string]bool{}}, nil
}

// slot is a directory that a session uses.
type slot struct {
	s    *slots
	name string
}

func (s *slot) dir() string    { return filepath.Join(s.s.root, s.name, "fs") }
func (s *slot) filter() string { return filepath.Join(s.s.root, s.name, "filter") }

// take returns a slot for a key: of those that are free the one that was last filtered in the same way, else the one that was
// used last.
func (s *slots) take(key, filter string) (*slot, error) {
	sum := sha256.Sum256([]byte(key))
	prefix := hex.EncodeToString(sum[:16]) + "."
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, err
	}
	var pick *slot
	var used time.Time
	taken := map[string]bool{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		taken[e.Name()] = true
		if s.busy[e.Name()] {
			continue
		}
		c := &slot{s, e.Name()}
		old, err := os.ReadFile(c.filter())
		if err == nil && string(old) == filter {
			pick = c
			break
		}
		if st, err := os.Stat(filepath.Join(s.root, c.name)); err == nil && (pick == nil || st.ModTime().After(used)) {
			pick, used = c, st.ModTime()
		}
	}
	for n := 0; pick == nil; n++ {
		if name := fmt.Sprintf("%s%d", prefix, n); !taken[name] {
			pick = &slot{s, name}
		}
	}
	if err := os.MkdirAll(pick.dir(), 0o755); err != nil {
		return nil, err
	}
	s.busy[pick.name] = true
	return pick, nil
}

// clear makes the directory empty, so that nothing in it is taken for what the client has.
func (s *slot) clear() error {
	return errors.Join(os.RemoveAll(s.dir()), os.MkdirAll(s.dir(), 0o755))
}

// filled notes that the slot holds what a filter lets through; before a transfer begins it holds nothing for sure.
func (s *slot) filled(filter string) error {
	if filter == "" {
		err := os.Remove(s.filter())
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.WriteFile(s.filter(), []byte(filter), 0o600)
}

// free gives a slot back, and removes the oldest ones if there are too many.
func (s *slot) free() {
	s.s.mu.Lock()
	delete(s.s.busy, s.name)
	bad := s.s.bad[s.name]
	delete(s.s.bad, s.name)
	s.s.mu.Unlock()
	if bad {
		_ = s.s.remove(s.name) // what is left of it is not known to hold anything: its filter goes with it
	}
	all, err := s.s.names()
	if err != nil || len(all) <= maxSlots {
		return
	}
	slices.SortFunc(all, func(a, b Slot) int { return a.Used.Compare(b.Used) })
	for _, old := range all[:len(all)-maxSlots] {
		_ = s.s.remove(old.Name) // a cache: the next one to be freed tries again
	}
}

// names lists the slots without their sizes.
func (s *slots) names() ([]Slot, error) {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Slot
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), outgoing) {
			continue
		}
		slot := Slot{Name: e.Name(), InUse: s.busy[e.Name()]}
		if st, err := os.Stat(filepath.Join(s.root, e.Name(), "filter")); err == nil {
			slot.Used = st.ModTime()
		}
		all = append(all, slot)
	}
	return all, nil
}

func (s *slots) list() ([]Slot, error) {
	all, err := s.names()
	for i := range all {
		// Files may vanish meanwhile: then they take no space.
		_ = filepath.WalkDir(filepath.Join(s.root, all[i].Name), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			if st, err := d.Info(); err == nil {
				all[i].Size += st.Size()
			}
			return nil
		})
	}
	return all, err
}

func (s *slots) prune(keep func(Slot) bool) ([]Slot, error) {
	all, err := s.list()
	var gone []Slot
	for _, x := range all {
		if x.InUse || keep(x) {
			continue
		}
		if e := s.remove(x.Name); e != nil {
			err = errors.Join(err, e)
			continue
		}
		gone = append(gone, x)
	}
	return gone, err
}

// distrust removes all slots; those in use when they are given back.
func (s *slots) distrust() {
	all, err := s.names()
	if err != nil {
		return
	}
	for _, x := range all {
		s.mu.Lock()
		used := s.busy[x.Name]
		if used {
			s.bad[x.Name] = true
		}
		s.mu.Unlock()
		if !used {
			_ = s.remove(x.Name)
		}
	}
}

// remove deletes a slot that nobody uses: it is moved aside first, so that nobody begins to.
func (s *slots) remove(name string) error {
	aside := filepath.Join(s.root, outgoing+name)
	s.mu.Lock()
	if s.busy[name] {
		s.mu.Unlock()
		return nil
	}
	err := os.Rename(filepath.Join(s.root, name), aside)
	s.mu.Unlock()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return os.RemoveAll(aside)
}
