package store

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// database is the durable part of the records: one bbolt bucket. bbolt trusts its file, so a damaged page can make it
// panic, or read memory that is not there; every access goes through guard, which turns both into a damageError.
type database struct {
	bolt *bbolt.DB
}

var bucketName = []byte("strata")

// damageError says that the database file itself, not only a record in it, cannot be used.
type damageError struct{ what any }

func (e *damageError) Error() string {
	return fmt.Sprintf("the metadata database is damaged: %v", e.what)
}

// guard runs f, which must not take a lock that outlives a panic.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = &damageError{r}
		}
	}()
	return f()
}

func openDatabase(path string) (*database, error) {
	d := &database{}
	err := guard(func() error {
		b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoStatistics: true})
		d.bolt = b
		return err
	})
	if err == nil {
		err = checkTree(path, d.bolt.Info().PageSize)
		if err != nil {
			d.close()
		}
	}
	var sys syscall.Errno
	switch {
	case err == nil:
		return d, nil
	case errors.As(err, new(*damageError)), errors.As(err, &sys), errors.Is(err, os.ErrNotExist), errors.Is(err, berrors.ErrTimeout):
		return nil, err // the machine's failures say nothing about the file
	}
	return nil, &damageError{err}
}

func (d *database) close() error {
	return guard(d.bolt.Close)
}

// get returns a copy of a sealed value, nil if there is none.
func (d *database) get(key string) (val []byte, err error) {
	err = guard(func() error {
		return d.bolt.View(func(tx *bbolt.Tx) error {
			if b := tx.Bucket(bucketName); b != nil {
				if v := b.Get([]byte(key)); v != nil {
					val = append(make([]byte, 0, len(v)), v...)
				}
			}
			return nil
		})
	})
	return val, err
}

// each calls f with copies of all records whose keys start with a prefix.
func (d *database) each(prefix string, f func(key string, val []byte)) error {
	return d.scan(prefix, math.MaxInt, f)
}

// heads is each with no more of the values than the part that seal adds.
func (d *database) heads(prefix string, f func(key string, head []byte)) error {
	return d.scan(prefix, sealedHead, f)
}

func (d *database) scan(prefix string, most int, f func(key string, val []byte)) error {
	type pair struct {
		k string
		v []byte
	}
	var all []pair
	err := guard(func() error {
		return d.bolt.View(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketName)
			if b == nil {
				return nil
			}
			c := b.Cursor()
			for k, v := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, v = c.Next() {
				all = append(all, pair{string(k), append([]byte(nil), v[:min(len(v), most)]...)})
			}
			return nil
		})
	})
	for _, p := range all {
		f(p.k, p.v)
	}
	return err
}

// put stores changes in one transaction, which is on the disk when put returns.
func (d *database) put(changes map[string][]byte) error {
	return guard(func() error {
		return d.bolt.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucketName)
			if err != nil {
				return err
			}
			for k, v := range changes {
				if v == nil {
					err = b.Delete([]byte(k))
				} else {
					err = b.Put([]byte(k), v)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}
