// Applets are the programs that the stand-in images need and Debian's busybox does not have: adduser, addgroup, nc with unix
// sockets, ttysize, wget with a time limit, apk and hellofs. It is one static program under several names, as busybox is.
//
//	adduser -D -u 1000 -G testgroup testuser
//	nc -l -s local:/socket.sock
//	apk add --no-cache curl
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	commands := map[string]func(args []string) error{
		"adduser": adduser, "addgroup": addgroup, "nc": netcat, "ttysize": ttysize, "wget": wget, "apk": apk, "hellofs": hellofs,
	}
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if commands[name] == nil && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	run := commands[name]
	if run == nil {
		fmt.Fprintf(os.Stderr, "%s: applet not found\n", name)
		os.Exit(127)
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// parse reads one-letter options that may stand among the arguments, as busybox does. The options in valued take the rest of
// their word, or the next word, as their value. Long options are taken as flags.
func parse(args []string, valued string) (opts map[string]string, rest []string) {
	opts = map[string]string{}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if strings.HasPrefix(arg, "--") || len(arg) < 2 || arg[0] != '-' {
			if !strings.HasPrefix(arg, "--") {
				rest = append(rest, arg)
			}
			continue
		}
		for j := 1; j < len(arg); j++ {
			letter := arg[j : j+1]
			if !strings.Contains(valued, letter) {
				opts[letter] = ""
				continue
			}
			if value := arg[j+1:]; value != "" {
				opts[letter] = value
			} else if i++; i < len(args) {
				opts[letter] = args[i]
			}
			break
		}
	}
	return opts, rest
}
