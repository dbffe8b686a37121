package local

import (
	"context"
	"os"
	"testing"

	"github.com/strata-build/strata/engine"
	"github.com/strata-build/strata/event"
	"github.com/strata-build/strata/session"
)

// Who serves the engine hears of builds that have ended, also of those that have failed, before their client does; and of nothing else.
func TestServeReportsBuilds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	e, err := engine.Open(t.Context(), engine.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	l, err := Listen(root)
	if err != nil {
		t.Fatal(err)
	}
	built := make(chan struct{}, 10)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, e, ServeOptions{Stays: true, Built: func() { built <- struct{}{} }}) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c, err := Dial(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Images(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(built) != 0 {
		t.Error("a list of images is reported as a build")
	}
	s, err := session.NewLocal(session.LocalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Build(t.Context(), engine.Request{}, s, func(event.Event) {}); err == nil {
		t.Error("a build of nothing has not failed")
	}
	if len(built) != 1 {
		t.Errorf("%d builds are reported", len(built))
	}
}
