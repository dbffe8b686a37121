// Package history keeps what builds leave for later: a record of each, and the files that it names.
//
// A record is one JSON value that this package does not look into; its name is the build's. A blob is a file named by the
// digest of its content, such as a build's log, error or trace, or the manifest of an image that it made. It stays as
// long as a record names it. Nothing of it is in the store, so that what is collected there does not take it away.
//
//	s, records, err := history.Open("/var/lib/strata/history", log)
//	b, err := s.Put("text/plain", strings.NewReader("it worked"))
//	err = s.Save("build-1", []byte(`{"ok": true}`), []history.Blob{b})
//	f, err := s.Open(b.Digest)
//	err = s.Delete("build-1") // and the blob with it
//
// Layout: NAME.json, a record with its blobs, where NAME is the hash of the build's name; blobs/HEX. A file is written under
// another name first, so that who dies leaves none that is half there. After a loss of power some may be damaged or
// missing: such records are forgotten.
package history
