package e2e

import (
	"fmt"
	"slices"
	"strings"
)

// shrinkBuilds bounds the builds that are spent to make a failure smaller.
const shrinkBuilds = 80

// report fails the test with the smallest thing that shows a difference: versions built one after the other in an empty
// root, if that is enough; otherwise all that happened.
func (r *torture) report(diff string, failed *project) {
	r.t.Helper()
	versions := append(slices.DeleteFunc(slices.Clone(r.versions), func(p *project) bool { return p == failed }), failed)
	var b strings.Builder
	fmt.Fprintf(&b, "TORTURE=1 TORTURE_SEED=%d: warm and cold differ:\n%s\n", r.seed, diff)
	left := shrinkBuilds
	if small, why := r.shrink(versions, &left); small != nil {
		fmt.Fprintf(&b, "These builds, one after the other in an empty root, show it:\n%s\n", why)
		versions = small
	} else {
		fmt.Fprintf(&b, "The same builds alone do not show it. What happened:\n%s\n", strings.Join(r.did, "\n"))
	}
	for n, p := range versions {
		fmt.Fprintf(&b, "--- %d\n%s", n, p)
	}
	r.t.Fatal(b.String())
}

// replay builds projects one after the other in an empty root, and says how the last differs from a build of it alone.
func (r *torture) replay(versions []*project, left *int) string {
	*left -= len(versions) + 1
	s, end := r.fresh()
	defer end()
	var warm outcome
	for _, p := range versions {
		r.put(p, 0)
		warm = r.outcome(r.start(s, p, 0))
	}
	return compare(warm, r.cold(0))
}

// shrink leaves out versions, then lines and files of all versions, as long as the difference stays. It returns nil if the
// builds alone do not make one.
func (r *torture) shrink(versions []*project, left *int) (small []*project, diff string) {
	if diff = r.replay(versions, left); diff == "" {
		return nil, ""
	}
	try := func(smaller []*project) bool {
		if *left <= 0 {
			return false
		}
		d := r.replay(smaller, left)
		// A project that cannot be built any more shows something else.
		if d == "" || strings.Contains(d, "ends with code") != strings.Contains(diff, "ends with code") {
			return false
		}
		versions, diff = smaller, d
		return true
	}
	for n := len(versions) - 2; n >= 0; n-- {
		if n < len(versions)-1 {
			try(slices.Delete(slices.Clone(versions), n, n+1))
		}
	}
	for _, p := range slices.Clone(versions) {
		for _, without := range p.without() {
			var smaller []*project
			for _, v := range versions {
				smaller = append(smaller, without(v))
			}
			try(smaller)
		}
	}
	return versions, diff
}
