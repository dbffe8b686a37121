package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/session"
)

// wantError checks that an error, as the user sees it, has all the words.
func wantError(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error; want one with %q", what, words)
		return
	}
	var b bytes.Buffer
	diag.Render(&b, err)
	for _, w := range words {
		if !strings.Contains(b.String(), w) {
			t.Errorf("%s: error %q lacks %q", what, b.String(), w)
		}
	}
}

func TestParseSecret(t *testing.T) {
	t.Setenv("IN_ENV", "x")
	for in, want := range map[string]session.SecretSource{
		"id=a,src=/f":          {File: "/f"},
		"id=a,source=/f":       {File: "/f"},
		"type=file,id=a,src=f": {File: "f"},
		"id=a,env=V":           {Env: "V"},
		"id=a,type=env,env=V":  {Env: "V"},
		"id=a,type=env,src=V":  {Env: "V"},
		"id=a,type=env":        {Env: "a"},
		"id=a":                 {File: "a"},
		"id=a,type=file":       {File: "a"},
		"id=IN_ENV":            {},
		`"src=/a,b",id=a`:      {File: "/a,b"},
	} {
		id, got, err := parseSecret(in)
		if err != nil || got != want || id != "a" && id != "IN_ENV" {
			t.Errorf("%s: got %q %+v, %v; want %+v", in, id, got, err, want)
		}
	}
	for in, word := range map[string]string{
		"": "empty", "src=f": "id is missing", "id=a,scr=f": "did you mean src?", "id=a,src=f,env=V": "both", "id=a,type=fiel": "did you mean file?",
		"a": "NAME=VALUE", "id=a,id=b": "twice", `"id=a`: "quotes",
	} {
		_, _, err := parseSecret(in)
		wantError(t, in, err, word)
	}
}

func TestParseSSH(t *testing.T) {
	for in, want := range map[string][]string{"default": nil, "a=/s": {"/s"}, "a=k1,k2": {"k1", "k2"}} {
		if _, got, err := parseSSH(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "=x", "a=", "a=k1,,k2"} {
		_, _, err := parseSSH(in)
		wantError(t, in, err)
	}
}

func TestParseOutput(t *testing.T) {
	for in, want := range map[string]output{
		"out":                                {"local", map[string]string{}, "out"},
		"-":                                  {"tar", map[string]string{}, "-"},
		"type=local,dest=a b":                {"local", map[string]string{}, "a b"},
		"type=tar":                           {"tar", map[string]string{}, "-"},
		"type=oci,dest=x.tar,name=n":         {"oci", map[string]string{"name": "n"}, "x.tar"},
		`type=image,"name=a,b",push=true`:    {"image", map[string]string{"name": "a,b", "push": "true"}, ""},
		"type=registry,compression=zstd":     {"registry", map[string]string{"compression": "zstd"}, ""},
		"dest=-,type=docker,compression=zst": {"docker", map[string]string{"compression": "zst"}, "-"},
	} {
		if got, err := parseOutput(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, word := range map[string]string{
		"": "empty", "dest=x": "type is missing", "type=lokal,dest=x": "did you mean local?", "type=local": "dest=DIRECTORY", "type=oci": "dest=FILE",
		"type=tar,dest": "NAME=VALUE", "type=foo": "local, tar, oci",
	} {
		_, err := parseOutput(in)
		wantError(t, in, err, word)
	}
}

func TestParseSmall(t *testing.T) {
	for in, want := range map[string]graph.Ulimit{
		"nofile=10": {Name: "nofile", Soft: 10, Hard: 10}, "nofile=10:20": {Name: "nofile", Soft: 10, Hard: 20}, "core=-1": {Name: "core", Soft: -1, Hard: -1}, "core=0:-1": {Name: "core", Soft: 0, Hard: -1},
	} {
		if got, err := parseUlimit(in); err != nil || got != want {
			t.Errorf("ulimit %s: %+v, %v", in, got, err)
		}
	}
	for in, word := range map[string]string{"nofile": "NAME=SOFT", "nofil=1": "did you mean nofile?", "nofile=2:1": "above", "nofile=x": "NAME=SOFT", "nofile=-1:5": "above"} {
		_, err := parseUlimit(in)
		wantError(t, in, err, word)
	}
	for in, want := range map[string]graph.HostIP{
		"a:1.2.3.4": {Host: "a", IP: "1.2.3.4"}, "a=1.2.3.4": {Host: "a", IP: "1.2.3.4"}, "a:::1": {Host: "a", IP: "::1"}, "a:[::1]": {Host: "a", IP: "::1"}, "a:host-gateway": {Host: "a", IP: "host-gateway"},
	} {
		if got, err := parseHost(in); err != nil || got != want {
			t.Errorf("host %s: %+v, %v", in, got, err)
		}
	}
	for in, word := range map[string]string{"a": "HOST:IP", ":1.2.3.4": "HOST:IP", "a:b": "not an IP address", "a:": "HOST:IP"} {
		_, err := parseHost(in)
		wantError(t, in, err, word)
	}
	for in, want := range map[string]int64{"0": 0, "512": 512, "1k": 1024, "1kb": 1024, "1.5g": 3 << 29, "2GiB": 2 << 30, "1t": 1 << 40, "5b": 5} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("bytes %s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1", "1q", "k", "nan", "inf", "1e30"} {
		_, err := parseBytes(in)
		wantError(t, "bytes "+in, err, "number of bytes")
	}
	for in, want := range map[string]time.Duration{"90m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour} {
		if got, err := parseAge(in); err != nil || got != want {
			t.Errorf("age %s: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "d", "-1h", "yesterday"} {
		_, err := parseAge(in)
		wantError(t, "age "+in, err, "age")
	}
	if got, err := parseEpoch("1700000000"); err != nil || got.Unix() != 1700000000 {
		t.Errorf("epoch: %v, %v", got, err)
	}
	_, err := parseEpoch("now")
	wantError(t, "epoch", err, "seconds since 1970")
	_, err = parseNetwork("hosts")
	wantError(t, "network", err, "did you mean host?")
	_, err = parsePlatforms("linux/amd64,linux//x")
	wantError(t, "platform", err, "not a platform")
}

// Errors of flags and commands name the flag and the value, and say what to do.
func TestUsageErrors(t *testing.T) {
	t.Setenv("STRATA_ROOT", t.TempDir())
	for line, words := range map[string]string{
		"biuld .":                        "unknown command: strata biuld|did you mean strata build?",
		"image lss":                      "unknown command: strata image lss|did you mean strata image ls?",
		"frobnicate":                     "run 'strata --help'",
		"build --tga x .":                "unknown flag: --tga|did you mean --tag?",
		"build --frobnicate .":           "run 'strata build --help'",
		"build -Z .":                     "unknown flag: -Z",
		"build":                          "strata build needs a build context|strata build [OPTIONS] PATH|example: strata build -t app .",
		"build a b":                      "needs a build context, and got 2: a b",
		"build --memory 12q .":           "--memory 12q: it must be a number of bytes",
		"build --memory":                 "--memory needs a value",
		"build --secret idd=x .":         "--secret idd=x|did you mean id?",
		"build --progress fancy .":       "--progress fancy|auto, tty, plain, rawjson, quiet",
		"build --platform linux//x .":    "--platform linux//x|os/arch",
		"build --platform linux/amd46 .": `unknown architecture "amd46"|did you mean amd64?`,
		"run --platform linux/amd46 x":   `unknown architecture "amd46"|did you mean amd64?`,
		"image pull --platform amd46 x":  `"amd46" is not a platform`,
		"build -o type=oci,dset=x .":     `unknown attribute "dset"|did you mean dest?`,
		"build --add-host a:b .":         "--add-host a:b|not an IP address",
		"build --label =x .":             "--label =x: it must be NAME=VALUE or NAME",
		"build --cpu-shares x .":         "--cpu-shares x",
		"build --no-cache=x .":           "--no-cache x",
		"build -f - -":                   "cannot both come from standard input",
		"build ./does-not-exist":         "does not exist",
		"build parse_tset.go":            "did you mean parse_test.go?",
		"build parse_test.go":            "is not a directory|--file",
		"build .":                        "no Dockerfile at|--file",
		"build --push .":                 "no Dockerfile",
		"run":                            "needs an image",
		"run -v a:b x":                   "--volume a:b|absolute TARGET",
		"image import x":                 "needs an archive and a name, and got 1: x",
		"pull":                           "strata pull needs one image",
		"rmi":                            "strata rmi needs at least one image",
		"prune --until yesterday":        "--until yesterday|7d",
	} {
		var out, errw bytes.Buffer
		code := (&cli{in: strings.NewReader(""), out: &out, err: &errw}).execute(strings.Fields(line))
		if code != 1 || out.Len() > 0 {
			t.Errorf("strata %s: code %d, output %q", line, code, out.String())
		}
		for w := range strings.SplitSeq(words, "|") {
			if !strings.Contains(errw.String(), w) {
				t.Errorf("strata %s: error %q lacks %q", line, errw.String(), w)
			}
		}
	}
}
