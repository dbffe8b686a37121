package progress

import (
	"fmt"
	"strings"
	"time"
)

// seconds is a duration as the display shows it: "0.3s", "12.0s", "2m03s", "1h02m".
func seconds(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute-50*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		d = d.Truncate(time.Second)
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// size is a number of bytes in decimal units, as registries and Docker count: "12.3MB".
func size(n float64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for n >= 999.5 && i < len(units)-1 {
		n /= 1000
		i++
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%.0f%s", n, units[i])
	case n < 9.995:
		return fmt.Sprintf("%.2f%s", n, units[i])
	case n < 99.95:
		return fmt.Sprintf("%.1f%s", n, units[i])
	}
	return fmt.Sprintf("%.0f%s", n, units[i])
}

// amount is how far an item is: "12.3MB / 45.0MB", "3 / 7", "12.3MB", or nothing.
func (it *item) amount() string {
	show := func(n int64) string {
		if it.isBytes() {
			return size(float64(n))
		}
		return fmt.Sprint(n)
	}
	switch {
	case it.total > 0 && it.done:
		return show(it.total)
	case it.total > 0:
		return show(it.current) + " / " + show(it.total)
	case it.current > 0:
		return show(it.current)
	}
	return ""
}

// label is what an item is called: what is done, and with what. A digest is shortened.
func (it *item) label() string {
	words := strings.Fields(clean([]byte(it.name)))
	for i, w := range words {
		if strings.HasPrefix(w, "sha256:") {
			words[i] = shortDigest(w)
		}
	}
	if action := clean([]byte(it.action)); len(words) > 0 && words[0] != action {
		words = append([]string{action}, words...)
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// plural is "1 step", "2 steps".
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
