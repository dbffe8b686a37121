package store

import (
	"encoding/binary"
	"os"
	"testing"
)

// What a killed owner left of an update that it could not acknowledge is not damage; what it had acknowledged and is not whole is.
func TestTornUpdateIsNotDamage(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, slow())
	for i := range 3 {
		update(t, s, func(b *Batch) { b.Memo(key("def %d", i), key("%d", i)) })
	}
	log := s.wal.files[0]
	crash(t, s)
	whole, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	problems := func(content []byte) int {
		t.Helper()
		if err := os.WriteFile(log, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, root, slow())
		defer crash(t, s)
		found, err := s.Check(t.Context(), CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if m, err := s.Memo(key("def 0")); err != nil || m != key("0") {
			t.Errorf("an update that was acknowledged is lost: %v", err)
		}
		return len(found)
	}
	rest, last := whole, 0 // where the last frame begins
	for {
		_, next, _ := nextFrame(rest)
		if len(next) == 0 {
			break
		}
		last += len(rest) - len(next)
		rest = next
	}
	for cut := last; cut < len(whole); cut += 5 {
		if n := problems(whole[:cut]); n != 0 {
			t.Errorf("torn at byte %d of the last update: %d problems", cut-last, n)
		}
	}
	for name, at := range map[string]int{"first": frameHead + 3 + int(binary.LittleEndian.Uint32(whole[4:])) + frameHead, "last": len(whole) - 1} {
		bad := append([]byte(nil), whole...)
		bad[at] ^= 1
		if err := os.WriteFile(log, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, root, slow())
		found, err := s.Check(t.Context(), CheckOptions{})
		crash(t, s)
		if err != nil || len(found) == 0 {
			t.Errorf("a flipped bit in the %s update is not found (%v)", name, err)
		}
	}
}
