package llb

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/strata-build/strata/graph"
)

// everything is one op of each kind with a value in every field that is part of its identity.
func everything() []graph.Op {
	now, mode := time.Unix(1, 2).UTC(), uint32(0o644)
	user := &graph.Owner{User: "u", UserIn: 1, Group: "g", GroupIn: 1}
	ids := &graph.Owner{UID: 1, GID: 2}
	return []graph.Op{
		&graph.Image{Ref: "x:1", LayerLimit: 1, Checksum: hello},
		&graph.OCILayout{Ref: "x@" + hello, Store: "s", LayerLimit: 1},
		&graph.Blob{Ref: "x@" + hello, Layout: true, Store: "s", Filename: "f", Mode: mode, UID: 1, GID: 2},
		&graph.Git{
			Remote: "https://x/y", Ref: "r", Subdir: "s", Checksum: "c", KeepDir: true, SkipSubmodules: true, FetchByCommit: true, MTimeCommit: true,
			BundleFrom: "docker-image+blob://x@" + hello, Signature: &graph.GitVerify{PubKey: "k", RejectExpired: true, RequireSigned: true, IgnoreSignedTag: true},
		},
		&graph.HTTP{URL: "http://x/y", Checksum: hello, Filename: "f", Mode: mode, UID: 1, GID: 2, Header: map[string]string{"Accept": "a"}, Signature: &graph.HTTPVerify{PubKey: "k", Signature: "s"}},
		&graph.Local{Name: "n", Include: []string{"i"}, Exclude: []string{"e"}, Follow: []string{"f"}, Unique: "u", Metadata: true, MetaExcl: []string{"m"}},
		&graph.Exec{
			Args: []string{"a"}, Env: []string{"e=1"}, Cwd: "/c", User: "u", Hostname: "h",
			SecretEnv: []graph.SecretEnv{{ID: "i", Name: "n", Optional: true}}, Network: graph.NetworkNone, Security: graph.SecurityInsecure,
			ExtraHosts: []graph.HostIP{{Host: "h", IP: "1.2.3.4"}}, Devices: []graph.Device{{Name: "a/b=c", Optional: true}}, ExitCodes: []int{7}, Stubs: true,
			Mounts: []graph.Mount{
				{Type: graph.MountBind, Target: "/", Input: 0, Output: 0},
				{Type: graph.MountBind, Target: "/b", Input: 1, Source: "/s", Output: graph.None, ReadOnly: true, ByDef: true},
				{Type: graph.MountBind, Target: "/w", Input: 1, Output: 1, ByContent: true},
				{Type: graph.MountCache, Target: "/c", Input: 1, Source: "/s", Output: graph.None, CacheID: "c", Sharing: graph.SharingPrivate},
				{Type: graph.MountTmpfs, Target: "/t", Input: graph.None, Output: graph.None, Size: 5},
				{Type: graph.MountSecret, Target: "/s", Input: graph.None, Output: graph.None, ID: "i", Optional: true, UID: 1, GID: 2, Mode: mode},
			},
		},
		&graph.File{Actions: []graph.Action{
			{In: 1, From: 1, Out: graph.None, Copy: &graph.Copy{
				Src: "/s", Dest: "/d", Owner: user, Mode: &mode, FollowSymlink: true, DirContents: true, Unpack: true, CreateDest: true, Wildcard: true, AllowEmpty: true,
				Time: &now, Include: []string{"i"}, Exclude: []string{"e"}, AlwaysReplace: true, Required: []string{"r"},
			}},
			{In: 2, From: 1, Out: 1, Copy: &graph.Copy{Src: "/s", Dest: "/d", ModeStr: "u+x"}},
			{In: 3, Out: graph.None, Mkfile: &graph.Mkfile{Path: "/p", Mode: mode, Data: []byte("d"), Owner: ids, Time: &now}},
			{In: 4, Out: graph.None, Mkdir: &graph.Mkdir{Path: "/p", Mode: mode, Parents: true, Owner: ids, Time: &now}},
			{In: 5, Out: graph.None, Rm: &graph.Rm{Path: "/p", AllowNotFound: true, Wildcard: true}},
			{In: 6, Out: 0, Symlink: &graph.Symlink{Target: "t", Path: "/p", Owner: ids, Time: &now}},
		}},
		&graph.Build{File: "f", Attrs: map[string]string{"a": "b"}},
		&graph.Passthrough{ID: "p", Outs: []int{1}},
	}
}

// elsewhere are fields that the ops above cannot have beside the others, or that LLB has no place for: Encode refuses them, or
// another test has them.
var elsewhere = map[string]bool{"HTTP.modTime": true, "Git.bundle": true}

// A field that is added to an op, and that neither Encode nor Decode knows, would be lost.
func TestEveryFieldComesBack(t *testing.T) {
	a := graph.New(&graph.Image{Ref: "a:1"}, nil, graph.On(arm), graph.Named("a name"))
	b := graph.New(&graph.Image{Ref: "b:1"}, nil, graph.On(arm), graph.Named("a name"))
	seen, all := map[string]bool{}, map[string]bool{}
	for _, o := range everything() {
		fields(reflect.ValueOf(o).Elem(), seen, all)
		in := []graph.Edge{{V: a}, {V: b}}
		switch {
		case strings.HasPrefix(o.Kind(), "source."):
			in = nil
		case o.Kind() == "build":
			in = in[:1]
		}
		again(t, graph.Edge{V: graph.New(o, in, graph.On(arm), graph.Named("a name"))})
	}
	for f := range all {
		if !seen[f] && !elsewhere[f] {
			t.Errorf("no op of the test has a value in %s", f)
		}
	}
}

// fields notes the JSON fields of a value, and those that are not zero.
func fields(v reflect.Value, seen, all map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fields(v.Elem(), seen, all)
		}
	case reflect.Slice:
		for i := range v.Len() {
			fields(v.Index(i), seen, all)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if tag == "" || tag == "-" {
				continue
			}
			name := v.Type().Name() + "." + tag
			all[name] = true
			seen[name] = seen[name] || !v.Field(i).IsZero()
			fields(v.Field(i), seen, all)
		}
	}
}
