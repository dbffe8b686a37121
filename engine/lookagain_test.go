package engine

import (
	"testing"
	"time"
)

// A client makes a million small files, so that looking at its space takes long, and fills the disk until the next look.
func TestAttackSpaceThatTakesLongToAddUp(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		waited, took time.Duration
		lost, room   int64
		again        bool
	}{
		{waited: 0, took: 0, lost: 100 * gib, room: gib},                                          // once a second
		{waited: time.Second, took: time.Millisecond, room: gib, again: true},                     // cheap looks
		{waited: 30 * time.Second, took: 20 * time.Second, room: gib},                             // nothing happens
		{waited: 400 * time.Second, took: 20 * time.Second, room: gib, again: true},               //
		{waited: 20 * time.Second, took: 20 * time.Second, lost: 2 * gib, room: gib, again: true}, // the disk fills
		{waited: 19 * time.Second, took: 20 * time.Second, lost: 2 * gib, room: gib},              // half of the time
		{waited: 20 * time.Second, took: 20 * time.Second, lost: gib, room: 10 * gib},             //
		{waited: 20 * time.Second, took: 20 * time.Second, lost: gib / 1000, room: 0},             // a little is no news
	} {
		if lookAgain(c.waited, c.took, c.lost, c.room) != c.again {
			t.Errorf("%+v", c)
		}
	}
}
