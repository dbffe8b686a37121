package dockerfile

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/strata-build/strata/diag"
)

const outlined = `# BASE is the image
ARG BASE=alpine
ARG NAME=${BASE}-x
ARG UNUSED
FROM $BASE AS deps
ARG TOOL=1
RUN --mount=type=secret,id=dep --mount=type=cache,target=/c true
# build makes it
FROM deps AS build
ARG NAME
# LEVEL of the optimiser
ARG LEVEL=2
RUN --mount=type=secret,id=dep,required --mount=type=ssh,id=git,required=true --mount=type=cache,id=go,target=/go true
FROM scratch
ARG LATER
COPY --from=build / /
FROM scratch AS other
ARG NEVER
`

func TestOutline(t *testing.T) {
	req := Request{Source: &diag.Source{Name: "Dockerfile", Data: []byte(outlined)}, BuildPlatform: amd64, Target: "build", BuildArgs: map[string]string{"LEVEL": "3"}}
	o, err := NewOutline(t.Context(), req, newFake())
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.MarshalIndent(o, "", " ")
	var want Outline
	if err := json.Unmarshal([]byte(`{"name":"build","description":"makes it","args":[
		{"name":"BASE","description":"is the image","value":"alpine"},
		{"name":"NAME","value":"alpine-x"},
		{"name":"TOOL","value":"1"},
		{"name":"LEVEL","description":"of the optimiser","value":"3"}],
		"secrets":[{"name":"dep","required":true}],"ssh":[{"name":"git","required":true}],"cache":[{"name":"/c"},{"name":"go"}]}`), &want); err != nil {
		t.Fatal(err)
	}
	var plain Outline
	if err := json.Unmarshal(got, &plain); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(plain, want) {
		t.Errorf("got %s", got)
	}
	if o.Args[0].At[0].First != 2 || o.Secrets[0].At[0].First != 7 {
		t.Errorf("places: %+v %+v", o.Args[0].At, o.Secrets[0].At)
	}
	req.Target = ""
	o, err = NewOutline(t.Context(), req, newFake())
	if err != nil || o.Name != "other" || len(o.Args) != 1 || o.Args[0].Name != "NEVER" || o.Secrets != nil {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestTargets(t *testing.T) {
	ts, err := Targets(&diag.Source{Name: "Dockerfile", Data: []byte(outlined)})
	if err != nil {
		t.Fatal(err)
	}
	want := []TargetInfo{
		{Name: "deps", Base: "$BASE"}, {Name: "build", Base: "deps", Description: "makes it"}, {Base: "scratch"}, {Name: "other", Base: "scratch", Default: true},
	}
	for i := range ts {
		if ts[i].At[0].First == 0 {
			t.Errorf("%s has no place", ts[i].Name)
		}
		ts[i].At = nil
	}
	if !reflect.DeepEqual(ts, want) {
		t.Errorf("%+v", ts)
	}
	if _, err := Targets(&diag.Source{Name: "Dockerfile", Data: []byte("COPPY a")}); diag.KindOf(err) != diag.Invalid {
		t.Error(err)
	}
}

// An outline names its Dockerfile, also where it has no argument.
func TestOutlineSource(t *testing.T) {
	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM scratch\nLABEL a=b\n")}
	o, err := NewOutline(t.Context(), Request{Source: src}, newFake())
	if err != nil || o.Source != src {
		t.Errorf("%+v %v", o, err)
	}
}
