package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/client/llb"
)

// An idle engine hashes the layers that nobody has exported, so that damage to their files is found.
func TestDamageToALayerThatWasNeverExported(t *testing.T) {
	d := newDefinitions(t)
	d.e.idle.pause = time.Millisecond
	d.want("content", file(file(llb.Scratch(), "/below", "x"), "/f", "content"), "/f")
	for {
		ids, err := d.e.store.LayersWithoutDiffID()
		if err != nil {
			t.Fatal(err)
		}
		if len(ids) == 0 {
			break
		}
		if t.Context().Err() != nil {
			t.Fatalf("layers %v are not hashed", ids)
		}
		time.Sleep(time.Millisecond)
	}
	if found, err := d.e.Check(t.Context(), true, false); err != nil || len(found) > 0 {
		t.Fatalf("before the damage: %v, %v", found, err)
	}
	files, err := filepath.Glob(filepath.Join(d.e.Root(), "snapshots", "*", "fs", "f"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("C"), 0)
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	found, err := d.e.Check(t.Context(), true, false)
	if err != nil || len(found) == 0 || !strings.Contains(found[0].Err, "diff_id") {
		t.Errorf("the damage is not found: %v, %v", found, err)
	}
}

func TestIdlerWorksBetweenBuilds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := idler{pause: time.Second}
		var mu sync.Mutex
		begun, ended := 0, 0
		work := func(ctx context.Context) {
			mu.Lock()
			begun++
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			ended++
			mu.Unlock()
		}
		want := func(what string, b, e int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if begun != b || ended != e {
				t.Errorf("%s: begun %d times and ended %d times, want %d and %d", what, begun, ended, b, e)
			}
		}
		i.wake()
		i.rest(work)
		time.Sleep(time.Second / 2)
		i.wake() // another build, before the pause is over
		time.Sleep(2 * time.Second)
		want("during a build", 0, 0)
		i.rest(work)
		time.Sleep(2 * time.Second)
		want("idle", 1, 0)
		i.wake()
		want("the next build", 1, 1)
		i.rest(work)
		time.Sleep(2 * time.Second)
		i.close()
		want("closed", 2, 2)
		i.rest(work)
		time.Sleep(2 * time.Second)
		want("after the end", 2, 2)
	})
}
