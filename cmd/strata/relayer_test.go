package main

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// packages make a Debian image of more than 200 packages together with what they depend on.
const packages = "ca-certificates,curl,git,python3-yaml,python3-requests,nginx-light,vim-tiny,openssh-client,rsync,gcc,make,ruby,sqlite3,redis-server,less,procps,iproute2,man-db"

// TestRelayerLong is the example with 200 packages, of which one is upgraded. It takes minutes: STRATA_LONG=1 asks for it.
func TestRelayerLong(t *testing.T) {
	if os.Getenv("STRATA_LONG") == "" || os.Geteuid() != 0 || !inPath("mmdebstrap") {
		t.Skip("needs STRATA_LONG=1, root, mmdebstrap and a mirror of Debian")
	}
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	cmd := exec.CommandContext(t.Context(), "bash", filepath.Join("..", "..", "examples", "relayer", "run"), strings.TrimPrefix(s.URL, "http://"))
	cmd.Env = append(os.Environ(), "INCLUDE="+packages, "PACKAGE=curl")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`layers sent: 2 of \d+`, `sent: deb:curl`, `sent: top`, `dpkg -V says the same before and after`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	sent := regexp.MustCompile(`(first|second) push: +(\d+) bytes`).FindAllSubmatch(out, 2)
	if len(sent) != 2 {
		t.Fatalf("no sizes in\n%s", out)
	}
	first, _ := strconv.Atoi(string(sent[0][2])) // they are digits
	second, _ := strconv.Atoi(string(sent[1][2]))
	if second*20 > first {
		t.Errorf("the second push sent %d of %d bytes", second, first)
	}
	t.Logf("first push %d bytes, second %d", first, second)
}
