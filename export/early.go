package export

import (
	"context"
	"time"

	"github.com/strata-build/strata/layer"
	"github.com/strata-build/strata/store"
)

// Early does the work that an exporter will need for a layer of its image, so that it can begin while the build still
// makes other layers. hold keeps what is made. The exporter finds what was done, or joins what is under way. Exporters of files need none.
func (p *Packer) Early(ctx context.Context, x Exporter, id store.LayerID, epoch *time.Time, hold *store.Hold) error {
	var o imageOptions
	blob := true
	switch x := x.(type) {
	case *ImageStore:
		o, blob = x.imageOptions, x.push
	case *OCI:
		o = x.imageOptions
	case *Docker:
		o = x.imageOptions
	default:
		return nil
	}
	if o.Epoch != nil || o.NoEpoch {
		epoch = o.Epoch
	}
	req := Request{ID: id, Compression: o.Compression, Force: o.Force, Hold: hold}
	if o.Rewrite {
		req.Clamp = epoch
	}
	var err error
	if blob && o.Compression.Type != layer.Uncompressed {
		_, _, err = p.Blob(ctx, req)
	} else {
		_, err = p.Layer(ctx, req)
	}
	return err
}
