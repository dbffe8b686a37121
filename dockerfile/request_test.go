package dockerfile

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

func planText(t *testing.T, req Request, r Resolver, text string) *graph.Vertex {
	t.Helper()
	req.Source = &diag.Source{Name: "Dockerfile", Data: []byte(text)}
	req.BuildPlatform = amd64
	plan, err := Plan(t.Context(), req, r)
	if err != nil {
		t.Fatal(err)
	}
	return plan.Targets[0].Root.V
}

// What a request says of all steps arrives in them, and what bounds a step without changing its result is not in its key.
func TestStepSettings(t *testing.T) {
	req := Request{
		Hostname: "box", Network: graph.NetworkNone, ExtraHosts: []graph.HostIP{{Host: "db", IP: "10.0.0.1"}}, Devices: []graph.Device{{Name: "v.com/d=x"}},
		Limits: graph.Limits{Memory: 1 << 20, ShmSize: 1 << 16, CgroupParent: "/b", Ulimits: []graph.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}},
	}
	const text = "FROM alpine\nRUN a\nRUN --device=v.com/e=y b\n"
	v := planText(t, req, newFake(), text)
	x := v.Op.(*graph.Exec)
	if x.Hostname != "box" || x.Network != graph.NetworkNone || !reflect.DeepEqual(x.ExtraHosts, req.ExtraHosts) || !reflect.DeepEqual(x.Limits, req.Limits) {
		t.Errorf("%+v", x)
	}
	if len(x.Devices) != 2 || len(v.In[0].V.Op.(*graph.Exec).Devices) != 1 {
		t.Errorf("devices of one step are those of another: %+v", x.Devices)
	}
	free := req
	free.Limits = graph.Limits{}
	if planText(t, free, newFake(), text).ID != v.ID {
		t.Error("a limit changes the key")
	}
	if x.Shell != true || v.Platform.OS != "linux" || v.At[0].First != 3 {
		t.Errorf("%+v", v)
	}
}

func TestEpochOfRequest(t *testing.T) {
	at := time.Unix(42, 0).UTC()
	req := Request{Epoch: &at, Source: &diag.Source{Name: "Dockerfile", Data: []byte("FROM scratch\nLABEL a=b\n")}}
	plan, err := Plan(t.Context(), req, newFake())
	if err != nil {
		t.Fatal(err)
	}
	if c := plan.Targets[0].Config.History[0].Created; c == nil || !c.Equal(at) {
		t.Errorf("created %v", c)
	}
	req.BuildArgs = map[string]string{"SOURCE_DATE_EPOCH": "43"}
	if plan, err = Plan(t.Context(), req, newFake()); err != nil {
		t.Fatal(err)
	}
	if c := plan.Targets[0].Config.History[0].Created; c == nil || c.Unix() != 43 {
		t.Errorf("created %v", c)
	}
}

// The caller's own tree is the context: no directory of the client, and no ignore file, plays a part.
func TestGivenContext(t *testing.T) {
	own := graph.Edge{V: graph.New(&graph.Local{Name: "own"}, nil), Out: 0}
	v := planText(t, Request{Context: &own, Ignore: &diag.Source{Name: ".dockerignore", Data: []byte("a")}}, newFake(), "FROM scratch\nCOPY a /\n")
	if v.In[0] != own {
		t.Errorf("%+v", v.In)
	}
}

func TestLocalContext(t *testing.T) {
	v := planText(t, Request{ContextName: "dir", SharedKeys: map[string]string{"dir": "/home/me/dir"}, Ignore: &diag.Source{Name: ".dockerignore", Data: []byte("# x\n*.o\n!a.o\n")}},
		newFake(), "FROM scratch\nCOPY a /\nCOPY b /\n")
	l := v.In[1].V.Op.(*graph.Local)
	if l.Name != "dir" || l.SharedKey != "/home/me/dir" || !reflect.DeepEqual(l.Exclude, []string{"*.o", "!a.o"}) {
		t.Errorf("%+v", l)
	}
	if first := v.In[0].V.In[0].V; first != v.In[1].V {
		t.Error("two instructions have two contexts")
	}
}

// elsewhere answers with another image than was asked for, as a mirror or a policy does.
type elsewhere struct{ *fake }

func (e elsewhere) Image(ctx context.Context, ref string, p graph.Platform, mode graph.ResolveMode) (Resolved, error) {
	r, err := e.fake.Image(ctx, ref, p, mode)
	r.Ref = "mirror.example/alpine:3"
	return r, err
}

func TestResolverRenames(t *testing.T) {
	v := planText(t, Request{ResolveMode: graph.ResolvePull}, elsewhere{newFake()}, "FROM alpine\n")
	i := v.Op.(*graph.Image)
	if i.Ref != "mirror.example/alpine:3@"+testDigest || i.Mode != graph.ResolvePull {
		t.Errorf("%+v", i)
	}
}
