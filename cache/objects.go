package cache

import (
	"context"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/event"
)

// objects is a cache in an object store.
type objects struct{}

func newObjects(s Spec) (*objects, error) {
	return nil, diag.Errorf(diag.Unsupported, "caches of type %s are not supported yet", s.Type)
}

func (o *objects) id() string { return "" }

func (o *objects) load(context.Context) (*index, error) { return nil, nil }

func (o *objects) name() string { return "" }

func (o *objects) put(context.Context, *Layer, func(event.Event)) error { return nil }

func (o *objects) finish(context.Context, *Config, []Layer, *Export) (map[string]string, error) {
	return nil, nil
}
