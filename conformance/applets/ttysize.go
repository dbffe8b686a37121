package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ttysize prints the columns and rows of the terminal that the input is.
func ttysize([]string) error {
	size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	fmt.Println(size.Col, size.Row)
	return nil
}
