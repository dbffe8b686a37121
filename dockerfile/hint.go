package dockerfile

import (
	"regexp"
	"strings"

	"github.com/strata-build/strata/diag"
)

// flagsOf are the flags of an instruction.
func flagsOf(instruction string) []string {
	switch strings.ToUpper(instruction) {
	case "FROM":
		return []string{"platform"}
	case "RUN":
		return []string{"mount", "network", "security", "device"}
	case "COPY":
		return []string{"from", "chown", "chmod", "link", "parents", "exclude"}
	case "ADD":
		return []string{"chown", "chmod", "link", "checksum", "keep-git-dir", "unpack", "exclude"}
	case "SQUASH":
		return []string{"all", "since"}
	case "OUTPUT":
		return []string{"mode", "previous", "generator", "max-layers"}
	case "HEALTHCHECK":
		return []string{"interval", "timeout", "start-period", "start-interval", "retries"}
	}
	return nil
}

var (
	instructionNames = strings.Fields("ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD OUTPUT RUN SHELL SQUASH STOPSIGNAL USER VOLUME WORKDIR")
	mountTypes       = []string{"bind", "cache", "tmpfs", "secret", "ssh"}
	mountKeys        = strings.Fields("type from source target id sharing readonly readwrite required size mode uid gid env")
	sharingModes     = []string{"shared", "private", "locked"}
	networkModes     = []string{"default", "none", "host"}
	deviceKeys       = []string{"name", "required"}
)

var messages = regexp.MustCompile(`^(unknown instruction|unknown flag|unsupported mount type|unsupported sharing value|unexpected key|invalid network mode)[: ]*["']?([^"' ]+)`)

// hintFor is what the grammar's messages leave out: the nearest word that would have been right, or all of them.
// instruction is the text that the message is about.
func hintFor(msg, instruction string) string {
	m := messages.FindStringSubmatch(msg)
	if m == nil {
		return ""
	}
	name, _, _ := strings.Cut(strings.TrimSpace(instruction), " ")
	word, what, candidates, dash := m[2], "", []string(nil), ""
	switch m[1] {
	case "unknown instruction":
		what, candidates = "instructions", instructionNames
	case "unknown flag":
		what, candidates, dash = "flags of "+strings.ToUpper(name), flagsOf(name), "--"
		word = strings.TrimPrefix(word, "--")
	case "unsupported mount type":
		what, candidates = "types of mounts", mountTypes
	case "unsupported sharing value":
		what, candidates = "values of sharing", sharingModes
	case "invalid network mode":
		what, candidates = "networks", networkModes
	case "unexpected key":
		what, candidates = "options of --mount", mountKeys
		if regexp.MustCompile(`--device=\S*` + regexp.QuoteMeta(word)).MatchString(instruction) {
			what, candidates = "options of --device", deviceKeys
		}
	}
	if near := diag.Suggest(word, candidates); near != "" {
		return "did you mean " + dash + near + "?"
	}
	if len(candidates) == 0 {
		return name + " has no flags"
	}
	return "the " + what + " are: " + dash + strings.Join(candidates, ", "+dash)
}
