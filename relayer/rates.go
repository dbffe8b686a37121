package relayer

import (
	"bufio"
	"compress/gzip"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/strata-build/strata/layer"
)

// How often a Debian package changes in an image of a release: by the updates that the release has had, which its version counts and
// its changelog dates, and a little by those of the development, which say how busy its makers are.

const (
	window      = 2.0 // years before the newest entry of all changelogs that count
	quiet       = 0.1 // updates a year of a package that has had none
	development = 0.1 // of an update of the development, in updates of a release
	maxLog      = 16 << 20
	maxChanges  = 1000 // entries that are read of a changelog
)

const year = 365.25 * 24 * time.Hour

// stableUpdate matches the part of a version that counts the updates of a release: 3.0.17-1~deb12u3, 1:9.2p1-2+deb12u7,
// 8.9p1-3ubuntu0.13.
var stableUpdate = regexp.MustCompile(`(?:[+~]deb\d+u|ubuntu\d*\.)(\d+)`)

// counted is how many updates of its release a version is.
func counted(version string) float64 {
	m := stableUpdate.FindStringSubmatch(version)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return float64(min(n, 1000))
}

// change is one entry of a changelog.
type change struct {
	at      time.Time
	release bool // it is an update of a release, not of the development
}

// changelog reads a package's changelog, as far as it is there: images often leave it out. Source of the format: deb-changelog(5).
func changelog(fs *layer.FS, name string) []change {
	for _, p := range []string{"usr/share/doc/" + name + "/changelog.Debian.gz", "usr/share/doc/" + name + "/changelog.gz"} {
		e, ok := fs.Lookup(p)
		if !ok || e.Type != layer.File || e.Open == nil {
			continue
		}
		r, err := e.Open()
		if err != nil {
			continue
		}
		defer r.Close()
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil
		}
		return parseChangelog(io.LimitReader(z, maxLog))
	}
	return nil
}

// parseChangelog reads entries until one cannot be read: the newest come first.
func parseChangelog(r io.Reader) []change {
	var out []change
	release := false
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := in.Text()
		if _, rest, ok := strings.Cut(line, ") "); ok && line[0] != ' ' {
			dist, _, _ := strings.Cut(rest, ";")
			switch firstField(dist) {
			case "unstable", "experimental", "sid", "UNRELEASED", "":
				release = false
			default:
				release = true
			}
			continue
		}
		_, date, ok := strings.Cut(line, ">  ")
		if !ok || !strings.HasPrefix(line, " -- ") {
			continue
		}
		at, err := time.Parse("Mon, _2 Jan 2006 15:04:05 -0700", strings.TrimSpace(date))
		if err != nil {
			break
		}
		out = append(out, change{at, release})
		if len(out) == maxChanges || len(out) > 1 && out[0].at.Sub(at) > time.Duration(2*window*float64(year)) {
			break
		}
	}
	return out
}

func firstField(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return f[0]
	}
	return ""
}

// debRates returns the updates a year of source packages.
func debRates(fs *layer.FS, debs []deb) map[string]float64 {
	updates := map[string]float64{}
	logs := map[string][]change{}
	var newest time.Time
	for _, d := range debs {
		updates[d.source] = max(updates[d.source], counted(d.version))
		if logs[d.source] != nil {
			continue
		}
		log := changelog(fs, d.name)
		logs[d.source] = log
		if len(log) > 0 && log[0].at.After(newest) {
			newest = log[0].at
		}
	}
	rates := map[string]float64{}
	for source, n := range updates {
		busy := 0.0
		listed := 0.0
		for _, c := range logs[source] {
			switch {
			case newest.Sub(c.at) > time.Duration(window*float64(year)):
			case c.release:
				listed++
			default:
				busy++
			}
		}
		rates[source] = quiet + (max(n, listed)+development*busy)/window
	}
	return rates
}

// rateSince is the rate of a package of which only the time of its last build is known: one that has just been built is likelier to be
// built again soon than one that has not been for years.
func rateSince(built, newest time.Time) float64 {
	return 1 / (newest.Sub(built).Hours()/year.Hours() + 0.5)
}

// Rates of components of which the file system says nothing, in updates a year: of an application, which images are made for, and of
// others.
const (
	lateRate    = 12.0
	defaultRate = 0.25
)

func rateOf(c *component) float64 {
	if c.Updates != nil {
		if r := c.Updates(); r > 0 {
			return r
		}
	}
	if c.Late {
		return lateRate
	}
	return defaultRate
}

// explain says what the layers of the bins, of which the last one is the top, are expected to send.
func explain(bins []bin, layers []Layer) {
	for i, b := range bins {
		for _, x := range b.comps {
			layers[i].Updates += rateOf(x)
		}
		layers[i].Expected = sending(float64(layers[i].Bytes), layers[i].Updates)
	}
	top := &layers[len(bins)]
	top.Expected = float64(top.Bytes) // it has what changes with every package
}

// interval is the time between two images of a series, in years.
const interval = 1.0 / 12

// sending is how much of a layer's bytes an image sends on average, if the layer changes rate times a year at random (as a Poisson
// process): it is sent whole when anything in it has changed.
func sending(bytes, rate float64) float64 { return bytes * -math.Expm1(-rate*interval) }
