package store

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/strata-build/strata/graph"
)

// CheckOptions says how much Check looks at.
type CheckOptions struct {
	Full   bool // read everything: hash every blob and, with DiffID, every layer
	Repair bool // delete what is bad, so that it and what depends on it is made again
	// DiffID computes the digest of a layer's uncompressed tar from its directory; nil = layers are not read.
	DiffID func(ctx context.Context, dir string) (graph.Digest, error)
	// Differs compares a layer with the blob that it was unpacked from, and says what is not the same, or ""; nil = such
	// layers are not read.
	Differs func(ctx context.Context, blob io.Reader, dir string) (string, error)
}

// Problem is something that Check found.
type Problem struct {
	Kind     string // "record", "log", "database", "layer", "result", "image", "chain", "blob"
	ID       string
	What     string
	Repaired bool
}

// checker collects problems and, if they are to be repaired, the changes for that.
type checker struct {
	s     *Store
	opt   CheckOptions
	found []Problem
	batch *Batch
	trash []string
	bad   map[LayerID]bool
	again bool // after the database was saved from damage
}

// Check verifies the store: the checksums of all records, that what is named exists, and with Full the contents. The store
// can be used meanwhile. The error is about the check itself; what it finds are the problems.
func (s *Store) Check(ctx context.Context, opt CheckOptions) ([]Problem, error) {
	return s.check(ctx, opt, false)
}

func (s *Store) check(ctx context.Context, opt CheckOptions, again bool) ([]Problem, error) {
	c := &checker{s: s, opt: opt, batch: &Batch{s: s}, bad: map[LayerID]bool{}, again: again}
	for _, step := range []func(context.Context) error{c.log, c.database, c.records, c.layers, c.blobs} {
		if err := step(ctx); err != nil {
			return s.checkFailed(ctx, c, err)
		}
	}
	// What names a layer or a blob comes last, when the bad ones are known.
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.repair(); err != nil {
		return c.found, err
	}
	if err := c.references(); err != nil {
		return c.found, s.fail("cannot check the store", err)
	}
	return c.found, c.repair()
}

// checkFailed reports why a check ended early. A database that cannot be read to its end is a finding; what a repair saves of
// it is checked again.
func (s *Store) checkFailed(ctx context.Context, c *checker, err error) ([]Problem, error) {
	damage, ok := errors.AsType[*damageError](err)
	if !ok || c.again {
		return c.found, s.fail("cannot check the store", err)
	}
	c.problem("database", "meta.db", damage.Error())
	if !c.opt.Repair {
		return c.found, nil
	}
	s.damaged(damage) // in the background
	if err := s.rebuilt(ctx); err != nil {
		return c.found, s.fail("cannot check the store", err)
	}
	more, err := s.check(ctx, c.opt, true)
	return append(c.found, more...), err
}

func (c *checker) problem(kind, id, what string) {
	c.found = append(c.found, Problem{Kind: kind, ID: id, What: what, Repaired: c.opt.Repair})
}

// repair makes the changes that were collected so far. The caller holds mu.
func (c *checker) repair() error {
	if !c.opt.Repair {
		return nil
	}
	if err := c.s.commit(c.batch); err != nil {
		return err
	}
	for id := range c.bad {
		c.s.presence.set(id, layerGone)
	}
	for _, p := range c.trash {
		c.s.trash.put(p)
	}
	c.batch, c.trash = &Batch{s: c.s}, nil
	return nil
}

// log reads the log files again. What could be read of them is known: a flush repairs them.
func (c *checker) log(context.Context) error {
	before := len(c.found)
	if err := c.readLog(); err != nil {
		return err
	}
	if len(c.found) > before && c.opt.Repair {
		return c.s.renewLog()
	}
	return nil
}

func (c *checker) readLog() error {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	for _, name := range c.s.wal.files {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		_, updates, bad := nextFrame(b) // the header
		if n := replayFrames(updates, func(uint64, []change) {}); n > 0 || bad {
			c.problem("log", filepath.Base(name), "some updates cannot be read")
		}
	}
	return nil
}

// database verifies that the file's pages form a tree whose keys are in order.
func (c *checker) database(ctx context.Context) error {
	if !c.opt.Full {
		return nil
	}
	err := c.readDatabase()
	if err == nil {
		return nil
	}
	c.problem("database", "meta.db", err.Error())
	if !c.opt.Repair {
		return nil
	}
	c.s.damaged(&damageError{err})
	return c.s.rebuilt(ctx)
}

// readDatabase reads all pages in use. (bbolt's own check does so on a goroutine, where nothing catches a fault.)
func (c *checker) readDatabase() error {
	c.s.flushMu.Lock()
	defer c.s.flushMu.Unlock()
	c.s.mu.RLock()
	db := c.s.db
	c.s.mu.RUnlock()
	if err := checkTree(c.s.path("meta.db"), db.bolt.Info().PageSize); err != nil {
		return err
	}
	last, sorted := "", true
	err := db.heads("", func(key string, _ []byte) {
		sorted = sorted && last < key
		last = key
	})
	if err == nil && !sorted {
		err = errors.New("its keys are not in order")
	}
	return err
}

// records verifies every record's checksum and that it can be decoded.
func (c *checker) records(ctx context.Context) error {
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	for k := range kindNames {
		err := c.s.each(k, func(name string, _ uint64, b []byte, err error) {
			if err == nil {
				err = decodable(k, b)
			}
			if err != nil {
				c.problem("record", k.String()+" "+printable(k, name), err.Error())
				c.batch.drop(keyOf(k, name))
			}
		})
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

func decodable(k kind, b []byte) (err error) {
	switch k {
	case kindLayer:
		_, err = decodeLayer(0, b)
	case kindResult:
		_, err = decodeResult(b)
	case kindChain, kindState:
		_, err = decodeUint(b)
	case kindBlob:
		_, _, err = decodeBlob(b)
	case kindUse:
		_, err = decodeUse(b)
	case kindImage, kindVariant, kindMount:
		if !json.Valid(b) {
			err = errors.New("it cannot be decoded")
		}
	}
	return err
}

func printable(k kind, name string) string {
	if id, ok := layerOf(keyOf(k, name)); ok {
		return id.String()
	}
	return name
}

// layers verifies that layers have directories and, if asked, their contents.
func (c *checker) layers(ctx context.Context) error {
	var all []LayerInfo
	c.s.mu.RLock()
	err := c.s.each(kindLayer, func(name string, _ uint64, b []byte, err error) {
		if id, ok := layerOf(keyOf(kindLayer, name)); ok && err == nil {
			if l, err := decodeLayer(id, b); err == nil {
				all = append(all, l)
			}
		}
	})
	c.s.mu.RUnlock()
	if err != nil {
		return err
	}
	for _, l := range all {
		what, err := c.layer(ctx, l)
		if err != nil {
			return err
		}
		if what == "" {
			continue
		}
		if _, err := c.s.Layer(l.ID); err != nil && what != noDirectory {
			continue // collected meanwhile
		}
		c.problem("layer", l.ID.String(), what)
		c.bad[l.ID] = true
		c.batch.drop(layerKey(l.ID))
		c.trash = append(c.trash, c.s.layerRoot(l.ID))
	}
	return nil
}

const noDirectory = "its directory is gone"

func (c *checker) layer(ctx context.Context, l LayerInfo) (what string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	dir := c.s.LayerDir(l.ID)
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return noDirectory, nil
	}
	if c.opt.Full && c.opt.Differs != nil && l.Blob != "" {
		return c.unpacked(ctx, l.Blob, dir)
	}
	if !c.opt.Full || c.opt.DiffID == nil || l.DiffID == "" || l.Blob != "" {
		return "", nil
	}
	got, err := c.opt.DiffID(ctx, dir)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return "it cannot be read: " + err.Error(), nil
	case got != l.DiffID:
		return "its diff_id is " + string(got) + " and not " + string(l.DiffID), nil
	}
	return "", nil
}

// unpacked compares a layer with its blob. Where that is missing or damaged, nothing is known of the layer.
func (c *checker) unpacked(ctx context.Context, d graph.Digest, dir string) (what string, err error) {
	if _, err := hashFile(ctx, c.s.blobPath(d), d); err != nil {
		return "", ctx.Err()
	}
	b, err := c.s.OpenBlob(ctx, d)
	if err != nil {
		return "", ctx.Err()
	}
	defer b.Close()
	what, err = c.opt.Differs(ctx, b.Reader(), dir)
	if ctx.Err() == nil && err != nil {
		return "it cannot be compared with its blob: " + err.Error(), nil
	}
	return what, err
}

// blobs verifies that blobs have files of the right size and, if asked, their contents.
func (c *checker) blobs(ctx context.Context) error {
	sizes := map[graph.Digest]int64{}
	c.s.mu.RLock()
	err := c.s.each(kindBlob, func(name string, _ uint64, b []byte, err error) {
		if v, _, derr := decodeBlob(b); err == nil && derr == nil && graph.Digest(name).Validate() == nil {
			sizes[graph.Digest(name)] = v
		}
	})
	c.s.mu.RUnlock()
	if err != nil {
		return err
	}
	for d, size := range sizes {
		what := ""
		fi, err := os.Lstat(c.s.blobPath(d))
		switch {
		case err != nil:
			what = "its file is gone"
		case fi.Size() != size:
			what = "its file has " + strconv.FormatInt(fi.Size(), 10) + " bytes and not " + strconv.FormatInt(size, 10)
		case c.opt.Full:
			if _, err := hashFile(ctx, c.s.blobPath(d), d); err != nil {
				what = err.Error()
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if what != "" {
			c.problem("blob", string(d), what)
			c.batch.drop(keyOf(kindBlob, string(d)))
			c.trash = append(c.trash, c.s.blobPath(d))
		}
	}
	return nil
}

// references verifies that what results, chains and images name exists. Those that lack something read as misses; repair
// removes them. The caller holds mu.
func (c *checker) references() error {
	usable := func(stack []LayerID) (LayerID, bool) {
		for _, id := range stack {
			if !c.s.present(id) || c.bad[id] {
				return id, false
			}
		}
		return 0, true
	}
	err := c.s.each(kindResult, func(name string, _ uint64, b []byte, err error) {
		r, derr := decodeResult(b)
		if err != nil || derr != nil {
			return
		}
		for _, stack := range r.Outputs {
			if id, ok := usable(stack); !ok {
				c.problem("result", name, "it names layer "+id.String()+", which is bad or gone")
				c.batch.DropResult(graph.Digest(name))
				return
			}
		}
	})
	err = errors.Join(err, c.s.each(kindChain, func(name string, _ uint64, b []byte, err error) {
		v, derr := decodeUint(b)
		if err != nil || derr != nil {
			return
		}
		if _, ok := usable([]LayerID{LayerID(v)}); !ok {
			c.batch.drop(keyOf(kindChain, name)) // chains outlive collected layers: no problem
		}
	}))
	err = errors.Join(err, c.s.each(kindLost, func(name string, _ uint64, why []byte, err error) {
		if err == nil {
			c.problem("image", name, "it was lost with the metadata database: "+string(why)+"; build or pull it again")
			c.batch.drop(keyOf(kindLost, name))
		}
	}))
	return errors.Join(err, c.s.each(kindImage, func(name string, _ uint64, b []byte, err error) {
		var im Image
		if err != nil || json.Unmarshal(b, &im) != nil {
			return
		}
		what := c.s.imageWhole(&im)
		for _, p := range im.Platforms {
			if id, ok := usable(p.Layers); !ok {
				what = errors.New("it names layer " + id.String() + ", which is bad or gone")
			}
		}
		if what != nil {
			c.problem("image", name, what.Error())
			c.batch.DeleteImage(name)
		}
	}))
}
