package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// fileName spreads files over directories of 500, but for the first few, which stay at the top.
func fileName(dir string, i int) string {
	if i < 100 {
		return filepath.Join(dir, fmt.Sprint("f", i))
	}
	return filepath.Join(dir, fmt.Sprintf("d%03d/f%d", i/500, i))
}

// fill writes n files of about that size.
func fill(dir string, n, size int) error {
	made := map[string]bool{}
	for i := range n {
		p := fileName(dir, i)
		if sub := filepath.Dir(p); !made[sub] {
			made[sub] = true
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := writeFile(p, size, uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// fillBig makes a directory of n files of that size.
func fillBig(dir string, n, size int, seed uint64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i := range n {
		if err := writeFile(filepath.Join(dir, fmt.Sprint("f", i)), size, seed+uint64(i)); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes bytes that are the same for a seed, and about half as compressible as text: each 256 random bytes are
// followed by 256 of a phrase.
func writeFile(p string, size int, seed uint64) error {
	f, err := os.Create(p)
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	phrase := []byte(strings.Repeat("a file of the build context. ", 10))[:256]
	buf := make([]byte, 0, 1<<20)
	for left := size; left > 0; {
		buf = buf[:0]
		for len(buf) < min(left, cap(buf)) {
			var part [256]byte
			_, _ = rnd.Read(part[:]) // never fails
			buf = append(append(buf, part[:]...), phrase...)
		}
		n, err := f.Write(buf[:min(left, len(buf))])
		if err != nil {
			return err
		}
		left -= n
	}
	return f.Close()
}
