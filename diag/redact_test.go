package diag

import (
	"bytes"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:CANARY@host/x":                          "https://xxxxx:xxxxx@host/x",
		"https://CANARY@host/x":                               "https://xxxxx@host/x",
		"https://:CANARY@host/x":                              "https://xxxxx:xxxxx@host/x",
		"HTTPS://user:CANARY@host":                            "HTTPS://xxxxx:xxxxx@host",
		"a https://u:CANARY@h/x and git+http://u:CANARY@h/y.": "a https://xxxxx:xxxxx@h/x and git+http://xxxxx:xxxxx@h/y.",
		`{"url":"https://u:CANARY@h/x"}`:                      `{"url":"https://xxxxx:xxxxx@h/x"}`,
		"https://u:CANARY%40@h/x":                             "https://xxxxx:xxxxx@h/x",
		"https://u:CAN@NARY@h/x":                              "https://xxxxx:xxxxx@h/x",
		"https://u:CA/NARY@h/x":                               "https://xxxxx:xxxxx@h/x",
		"https://u:CA?NARY#x@h/x":                             "https://xxxxx:xxxxx@h/x",
		"https://u:1CA/NARY@h/x":                              "https://xxxxx:xxxxx@h/x",
		"https://h/x?X-Amz-Signature=CANARY&y=1":              "https://h/x?X-Amz-Signature=xxxxx&y=1",
		"https://h/x?a=1&X-Amz-Security-Token=CANARY":         "https://h/x?a=1&X-Amz-Security-Token=xxxxx",
		`"https://h/x?a=1\u0026X-Goog-Signature=CANARY"`:      `"https://h/x?a=1\u0026X-Goog-Signature=xxxxx"`,
		"https://h/x?sv=1&sig=CANARY%2b":                      "https://h/x?sv=1&sig=xxxxx",
		"https://h/x?access_token=CANARY#y":                   "https://h/x?access_token=xxxxx#y",
		"https://h/x?private-token=CANARY":                    "https://h/x?private-token=xxxxx",
		"https://h:8080/@scope/x@1?v=1":                       "https://h:8080/@scope/x@1?v=1",
		"ssh://git@host/x":                                    "ssh://git@host/x",
		"ssh://git:CANARY@host/x":                             "ssh://xxxxx:xxxxx@host/x",
		"git@github.com:a/b":                                  "git@github.com:a/b",
		"docker-image://docker.io/library/x:1@sha256:00":      "docker-image://docker.io/library/x:1@sha256:00",
		"oci-layout://store:1@sha256:00":                      "oci-layout://store:1@sha256:00",
		"https://[::1]:80/x@y":                                "https://[::1]:80/x@y",
		"mail a@b, see https://h/x":                           "mail a@b, see https://h/x",
		"no url with token=1":                                 "no url with token=1",
	} {
		got := Redact(in)
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
		if again := Redact(got); again != got {
			t.Errorf("%s: %s the second time", got, again)
		}
	}
}

// No error or warning shows a password: not in its message, its hint, the log or the excerpt of the file that it is in.
func TestAttackPasswordInExcerpt(t *testing.T) {
	src := &Source{Name: "Dockerfile", Data: []byte("FROM scratch\nADD https://user:CANARY@host/x /\n")}
	err := Errorf(NotFound, "https://user:CANARY@host/x: not found").WithHint("look at https://user:CANARY@host/").WithSpan(src.Lines(2, 2))
	err.Log = []string{"curl https://user:CANARY@host/x"}
	var out bytes.Buffer
	Render(&out, err)
	RenderWarning(&out, &Warning{Msg: "https://user:CANARY@host", Detail: []string{"https://user:CANARY@host"}, At: err.At})
	out.WriteString(err.Error())
	f := Flatten(err)
	out.WriteString(f.Msg + f.Hint + strings.Join(f.Log, "") + string(f.At[0].Source.Data))
	if got := out.String(); strings.Contains(got, "CANARY") || !strings.Contains(got, "ADD https://xxxxx:xxxxx@host/x") {
		t.Error(got)
	}
	if !strings.Contains(string(src.Data), "CANARY") {
		t.Error("the file that is built was changed")
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("user", "CANARY", "host/x?y=z")
	f.Add("", "a/b", "[::1]:80")
	f.Fuzz(func(t *testing.T, user, password, rest string) {
		if len(password) < 4 || strings.ContainsAny(user+password, " \t\r\n\v\f\"'<>\\`") || strings.ContainsAny(user, "/?#@:[") || strings.HasPrefix(rest, "@") || strings.Contains(password, "xx") {
			return
		}
		first := strings.TrimLeft(password, "0123456789")
		if strings.Contains(rest, password) || strings.Contains("https://xxxxx:xxxxx@ error see", password) || first == "" || strings.ContainsRune("/?#@", rune(first[0])) {
			return // what begins like a port and a path is one
		}
		text := "error https://" + user + ":" + password + "@" + rest
		if got := Redact(text); strings.Contains(got, password) {
			t.Fatalf("%q: %q", text, got)
		}
	})
}
