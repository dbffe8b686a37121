package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// hidden is the name of busybox's wget in the images.
const hidden = "wgea"

// wget is busybox's, which has another name in the stand-in images, but for -T SECONDS, in which Debian's static busybox
// crashes: that bounds the whole download here.
func wget(args []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if i := slices.Index(args, "-T"); i >= 0 && i+1 < len(args) {
		seconds, err := strconv.Atoi(args[i+1])
		if err != nil {
			return err
		}
		args = slices.Delete(slices.Clone(args), i, i+2)
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, "/bin/busybox", append([]string{hidden}, args...)...)
	var messages bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, &messages
	err := cmd.Run()
	_, _ = os.Stderr.Write(bytes.ReplaceAll(messages.Bytes(), []byte(hidden+":"), []byte("wget:")))
	if ctx.Err() != nil {
		return errors.New("download timed out")
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	return err
}
