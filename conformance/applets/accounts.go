package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// first is the first number that adduser and addgroup give.
const first = 1000

// record is a line of /etc/passwd or /etc/group.
type record []string

func readRecords(file string) ([]record, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []record
	for line := range strings.Lines(string(b)) {
		if r := record(strings.Split(strings.TrimSpace(line), ":")); len(r) > 2 {
			out = append(out, r)
		}
	}
	return out, nil
}

func find(records []record, name string) record {
	for _, r := range records {
		if r[0] == name {
			return r
		}
	}
	return nil
}

// free gives the first number from first on that no record has.
func free(records []record) string {
	for n := first; ; n++ {
		id := strconv.Itoa(n)
		used := false
		for _, r := range records {
			used = used || r[2] == id
		}
		if !used {
			return id
		}
	}
}

func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// addgroup [-g GID] NAME
func addgroup(args []string) error {
	opts, rest := parse(args, "g")
	if len(rest) != 1 {
		return errors.New("usage: addgroup [-g GID] NAME")
	}
	groups, err := readRecords("/etc/group")
	if err != nil {
		return err
	}
	if find(groups, rest[0]) != nil {
		return fmt.Errorf("group '%s' in use", rest[0])
	}
	gid := opts["g"]
	if gid == "" {
		gid = free(groups)
	}
	return appendLine("/etc/group", fmt.Sprintf("%s:x:%s:", rest[0], gid))
}

// adduser [-D] [-u UID] [-G GROUP] [-h HOME] [-s SHELL] NAME: without -G the user gets a group of the same name.
func adduser(args []string) error {
	opts, rest := parse(args, "uGhsg")
	if len(rest) != 1 {
		return errors.New("usage: adduser [-D] [-u UID] [-G GROUP] [-h HOME] [-s SHELL] NAME")
	}
	name := rest[0]
	users, err := readRecords("/etc/passwd")
	if err != nil {
		return err
	}
	if find(users, name) != nil {
		return fmt.Errorf("user '%s' in use", name)
	}
	uid := opts["u"]
	if uid == "" {
		uid = free(users)
	}
	gid, err := primaryGroup(name, uid, opts["G"])
	if err != nil {
		return err
	}
	home, shell := opts["h"], opts["s"]
	if home == "" {
		home = filepath.Join("/home", name)
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	if err := appendLine("/etc/passwd", fmt.Sprintf("%s:x:%s:%s:Linux User,,,:%s:%s", name, uid, gid, home, shell)); err != nil {
		return err
	}
	if err := appendLine("/etc/shadow", name+":!:19000:0:99999:7:::"); err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	u, err := strconv.Atoi(uid)
	if err != nil {
		return err
	}
	g, err := strconv.Atoi(gid)
	if err != nil {
		return err
	}
	return os.Chown(home, u, g)
}

func primaryGroup(user, uid, group string) (string, error) {
	groups, err := readRecords("/etc/group")
	if err != nil {
		return "", err
	}
	if group != "" {
		if r := find(groups, group); r != nil {
			return r[2], nil
		}
		return "", fmt.Errorf("unknown group %s", group)
	}
	return uid, appendLine("/etc/group", fmt.Sprintf("%s:x:%s:", user, uid))
}
