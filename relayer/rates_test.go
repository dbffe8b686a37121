package relayer

import (
	"bytes"
	"compress/gzip"
	"math"
	"strings"
	"testing"
	"time"
)

const curlLog = `curl (7.88.1-10+deb12u12) bookworm-security; urgency=high

  * Fix something.

 -- A Person <a@example.org>  Thu, 04 Jan 2024 10:00:00 +0000

curl (7.88.1-10+deb12u11) bookworm; urgency=medium

  * Fix something else.

 -- A Person <a@example.org>  Tue, 06 Jun 2023 10:00:00 +0200

curl (7.88.1-10) unstable; urgency=medium

  [ Somebody ]
  * New upstream.

 -- A Person <a@example.org>  Sat, 13 May 2023 10:00:00 +0000

curl (7.1-1) unstable; urgency=medium

 -- A Person <a@example.org>  Sat, 13 May 2000 10:00:00 +0000
`

func TestChangelog(t *testing.T) {
	got := parseChangelog(strings.NewReader(curlLog))
	if len(got) != 4 || !got[0].release || !got[1].release || got[2].release || !got[0].at.Equal(time.Date(2024, 1, 4, 10, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", got)
	}
	for version, want := range map[string]float64{
		"7.88.1-10+deb12u12": 12, "3.0.17-1~deb12u3": 3, "1:9.2p1-2": 0, "8.9p1-3ubuntu0.13": 13, "2.36-9+deb12u99999999999999999999": 0, "": 0,
	} {
		if got := counted(version); got != want {
			t.Errorf("%s: %v updates, want %v", version, got, want)
		}
	}
}

// Updates of the release count more than those of the development; without a changelog, as in slim images, the version tells.
func TestRatesOfDebianPackages(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write([]byte(curlLog))
	w.Close()
	files := map[string]string{"usr/share/doc/curl/changelog.Debian.gz": z.String()}
	rates := debRates(tree(t, files), []deb{
		{name: "curl", source: "curl", version: "7.88.1-10"}, {name: "openssl", source: "openssl", version: "3.0.17-1~deb12u3"}, {name: "libc-bin", source: "glibc", version: "2.36-9"},
	})
	for name, want := range map[string]float64{"curl": quiet + (2+development)/window, "openssl": quiet + 3/window, "glibc": quiet} {
		if math.Abs(rates[name]-want) > 1e-9 {
			t.Errorf("%s: %v updates a year, want %v", name, rates[name], want)
		}
	}
}

func TestSending(t *testing.T) {
	if got := sending(1000, 1200); math.Abs(got-1000) > 1 {
		t.Errorf("a layer that always changes: %v", got)
	}
	if got := sending(1000, 0.12); math.Abs(got-10) > 0.1 { // 1 % of the months
		t.Errorf("a layer that seldom changes: %v", got)
	}
}

// An update must not change how many bins there are for small components: all of them would move.
func TestPoolsAreSteady(t *testing.T) {
	for budget := 1; budget < 130; budget++ {
		flips, last := 0, 0
		for comps := budget + 1; comps < 600; comps++ {
			n := pools(comps, budget)
			if n < 1 || n > max(1, budget/2) {
				t.Fatalf("%d components, %d bins: %d pools", comps, budget, n)
			}
			if n < last {
				t.Fatalf("%d components, %d bins: fewer pools than for fewer components", comps, budget)
			}
			if n != last {
				flips++
			}
			last = n
		}
		if flips > 16 {
			t.Errorf("%d bins: %d numbers of pools", budget, flips)
		}
	}
}

func FuzzChangelog(f *testing.F) {
	f.Add([]byte(curlLog))
	f.Add([]byte(" -- x <y>  Thu, 04 Jan 2024 10:00:00 +0000\n) \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, c := range parseChangelog(bytes.NewReader(data)) {
			if c.at.IsZero() && len(data) == 0 {
				t.Error("an entry of nothing")
			}
		}
	})
}

// What an explanation needs is looked for only if one is asked for: changelogs are read for nothing else.
func TestRatesAreOnlyForExplanations(t *testing.T) {
	asked := 0
	gen := fixed{{Name: "a", Paths: []string{"a"}, Updates: func() float64 { asked++; return 12 }}}
	fs := tree(t, map[string]string{"a": "1", "top": "2"})
	for _, explain := range []bool{false, true} {
		layers := cut(t, fs, Options{Generators: []Generator{gen}, Explain: explain})
		want := 0.0
		if explain {
			want = 12
		}
		if layers[0].Updates != want || (asked > 0) != explain || (layers[0].Expected > 0) != explain {
			t.Errorf("explain %t: %v updates, %v bytes expected, asked %d times", explain, layers[0].Updates, layers[0].Expected, asked)
		}
	}
}

// A changelog of many entries, all of one day, must not take memory without end.
func TestChangelogOfManyEntries(t *testing.T) {
	entry := "x (1) unstable; urgency=low\n -- A <a@example.org>  Thu, 04 Jan 2024 10:00:00 +0000\n"
	if n := len(parseChangelog(strings.NewReader(strings.Repeat(entry, 5*maxChanges)))); n != maxChanges {
		t.Errorf("%d entries were kept", n)
	}
}
