package main

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// netcat [-z] [-w SECONDS] HOST PORT, or netcat -l [-p PORT] [-s ADDRESS | -s local:SOCKET]: input goes to the other side,
// what comes from there to the output. It ends when the other side does.
func netcat(args []string) error {
	opts, rest := parse(args, "pswi")
	if _, listen := opts["l"]; listen {
		return serve(opts)
	}
	if len(rest) != 2 {
		return errors.New("usage: nc [-z] [-w SECONDS] HOST PORT")
	}
	var dialer net.Dialer
	if wait, err := strconv.Atoi(opts["w"]); err == nil && wait > 0 {
		dialer.Timeout = time.Duration(wait) * time.Second
	}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(rest[0], rest[1]))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, probe := opts["z"]; probe {
		return nil
	}
	return talk(conn)
}

func serve(opts map[string]string) error {
	network, address := "tcp", net.JoinHostPort(opts["s"], opts["p"])
	if path, ok := strings.CutPrefix(opts["s"], "local:"); ok {
		network, address = "unix", path
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	return talk(conn)
}

func talk(conn net.Conn) error {
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		if c, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	_, err := io.Copy(os.Stdout, conn)
	return err
}
