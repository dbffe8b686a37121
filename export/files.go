package export

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/outfile"
	"github.com/strata-build/strata/tree"
)

// part is what an exporter of files writes for one image.
type part struct {
	*opened
	prefix string   // directory for it, or "."
	extra  []stated // files of attestations
	epoch  *time.Time
}

// parts opens the images of a set. The caller calls the function in any case.
func (f *files) parts(ctx context.Context, set *Set) ([]part, func(), error) {
	var parts []part
	closeAll := func() {
		for _, p := range parts {
			p.close()
		}
	}
	for i := range set.Images {
		im := &set.Images[i]
		o, err := f.open(ctx, im)
		if err != nil {
			return nil, closeAll, err
		}
		parts = append(parts, part{opened: o, prefix: f.prefix(set, im), epoch: f.epochOf(im)})
		if parts[i].extra, err = f.statements(ctx, o, set, im); err != nil {
			return nil, closeAll, err
		}
	}
	if len(parts) > 1 && parts[0].prefix == "." {
		return parts, closeAll, overwritten(parts, set)
	}
	return parts, closeAll, nil
}

// overwritten refuses images that have a file of the same name, if they all go into one directory.
func overwritten(parts []part, set *Set) error {
	from := map[string]int{}
	var walk func(p *tree.Pick, dir string, n int) error
	walk = func(p *tree.Pick, dir string, n int) error {
		for i := range p.Kids {
			k := &p.Kids[i]
			name := path.Join(dir, k.Name)
			if k.IsDir() {
				if err := walk(k, name, n); err != nil {
					return err
				}
				continue
			}
			if first, ok := from[name]; ok {
				return diag.Errorf(diag.Invalid, "cannot overwrite %s from %s with %s when split option is disabled",
					name, PlatformName(set.Images[first].Platform), PlatformName(set.Images[n].Platform)).
					WithHint("drop platform-split=false, or give the files of each platform names of their own")
			}
			from[name] = n
		}
		return nil
	}
	for n := range parts {
		if err := walk(&parts[n].top.Pick, "", n); err != nil {
			return err
		}
	}
	return nil
}

// statements makes the attestations of an image's files.
func (f *files) statements(ctx context.Context, o *opened, set *Set, im *Image) ([]stated, error) {
	all := wanted(im.Attestation, false)
	if len(all) == 0 {
		return nil, nil
	}
	self, err := o.sums(ctx)
	if err != nil {
		return nil, err
	}
	list, err := statements(ctx, all, about{self: self})
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i := range list {
		name := f.mark + list[i].name
		if (len(set.Images) > 1 || set.Multi) && f.prefix(set, im) == "." {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + fileNameOf(im) + ext
		}
		if seen[name] || strings.Contains(name, "/") {
			return nil, diag.Errorf(diag.Invalid, "duplicate attestation path name %s", name)
		}
		seen[name] = true
		list[i].name = name
	}
	return list, nil
}

// sums hashes the files of a result.
func (o *opened) sums(ctx context.Context) ([]subject, error) {
	out := []subject{}
	var walk func(p *tree.Pick, src, name string) error
	walk = func(p *tree.Pick, src, name string) error {
		for i := range p.Kids {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			k := &p.Kids[i]
			from, to := path.Join(src, k.Name), path.Join(name, k.Name)
			switch {
			case k.IsDir():
				if err := walk(k, from, to); err != nil {
					return err
				}
			case k.IsRegular():
				sum, err := o.sum(from)
				if err != nil {
					return err
				}
				out = append(out, subject{to, map[string]string{"sha256": sum}})
			}
		}
		return nil
	}
	return out, walk(&o.top.Pick, o.top.Rel, "")
}

func (o *opened) sum(rel string) (string, error) {
	fd, err := outfile.Beneath(o.fd, rel, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
