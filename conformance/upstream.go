//go:build upstream

package main

// The tests' packages, so that go.mod and go.sum cover what they need. They are compiled by go test -c, never linked in here.
import (
	_ "github.com/moby/buildkit/client"
	_ "github.com/moby/buildkit/frontend"
	_ "github.com/moby/buildkit/frontend/dockerfile"
	_ "github.com/moby/buildkit/solver"
)
