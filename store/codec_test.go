package store

import (
	"reflect"
	"testing"
	"time"

	"github.com/strata-build/strata/graph"
)

// A result without origins is written as earlier versions did, and what they wrote is read.
func TestResultsOfEarlierVersionsAreRead(t *testing.T) {
	plain := Result{Outputs: [][]LayerID{{1, 2}, {}}, Label: "RUN make", Cost: time.Second, Created: time.Unix(1e9, 0)}
	pinned := plain
	pinned.Blobs = []graph.Digest{key("blob")}
	for name, old := range map[string]struct {
		r      Result
		record string
	}{
		"without blobs": {plain, "\x02\x02\x02\x02\x00\x08RUN make\x80\x94\xeb\xdc\x03\x80\x80\x90\xbb\xba\xd6\xad\xf0\x0d\x00"},
		"with a blob":   {pinned, "\x02\x02\x02\x02\x00\x08RUN make\x80\x94\xeb\xdc\x03\x80\x80\x90\xbb\xba\xd6\xad\xf0\x0d\x00\x01\x47" + string(key("blob"))},
	} {
		if got := string(encodeResult(old.r)); got != old.record {
			t.Errorf("%s: written as %q", name, got)
		}
		if r, err := decodeResult([]byte(old.record)); err != nil || !reflect.DeepEqual(r, old.r) {
			t.Errorf("%s: read as %+v, %v", name, r, err)
		}
	}
	for _, blobs := range [][]graph.Digest{nil, {key("blob")}} {
		r := plain
		r.Blobs, r.Origins = blobs, []string{"registry.example.com/cache:main", ""}
		if got, err := decodeResult(encodeResult(r)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("with origins: %+v, %v", got, err)
		}
	}
}

// Records with an owner are read, and those without one are written as before there were owners.
func TestOwnersInRecords(t *testing.T) {
	for _, owner := range []string{"", "user 1000"} {
		for _, origins := range [][]string{nil, {"o"}} {
			r := Result{Outputs: [][]LayerID{{1}}, Created: time.Unix(1e9, 0), Origins: origins, Owner: owner}
			if got, err := decodeResult(encodeResult(r)); err != nil || !reflect.DeepEqual(got, r) {
				t.Errorf("%+v became %+v, %v", r, got, err)
			}
		}
		l := LayerInfo{ID: 7, Size: 5, Files: 2, Created: time.Unix(1e9, 0), Blob: key("b"), Owner: owner}
		if got, err := decodeLayer(7, encodeLayer(l)); err != nil || got != l {
			t.Errorf("%+v became %+v, %v", l, got, err)
		}
		if size, got, err := decodeBlob(encodeBlob(300, owner)); err != nil || size != 300 || got != owner {
			t.Errorf("300 of %q became %d of %q, %v", owner, size, got, err)
		}
	}
	if size, err := decodeUint(encodeBlob(300, "")); err != nil || size != 300 {
		t.Errorf("an earlier version reads %d, %v", size, err)
	}
}

func FuzzDecodeResult(f *testing.F) {
	f.Add(encodeResult(Result{Outputs: [][]LayerID{{1, 300}}, Label: "x", Origins: []string{"a", "b"}}))
	f.Add(encodeResult(Result{Outputs: [][]LayerID{{}}, Blobs: []graph.Digest{key("b")}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeResult(b)
		if err != nil {
			return
		}
		again, err := decodeResult(encodeResult(r))
		if err != nil || len(again.Origins) != len(r.Origins) || len(again.Outputs) != len(r.Outputs) {
			t.Errorf("%+v became %+v, %v", r, again, err)
		}
	})
}
