package restrict

import (
	"os/exec"
	"testing"
)

// BenchmarkStart is what the rights of a program cost.
func BenchmarkStart(b *testing.B) {
	rights := &Rights{Programs: programs, Ports: []uint16{443}}
	for name, start := range map[string]func(*exec.Cmd) error{
		"plain":      (*exec.Cmd).Start,
		"restricted": func(cmd *exec.Cmd) error { return Start(cmd, rights) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command("/bin/true")
				if err := start(cmd); err != nil {
					b.Fatal(err)
				}
				if err := cmd.Wait(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
