// Package outfile writes the files and directories that a user named: outputs of builds, archives, --iidfile, directories of caches.
//
// A [File] is written beside its name and renamed when it is complete, so that a cancelled or killed command leaves the old file.
// Only a regular file is replaced. What else has the name is written through: a FIFO, a device, /dev/stdout, and what a symlink
// names.
//
// A [Dir] is a directory that its owner may change at the same time, perhaps to mislead a process with more rights. Everything in it
// is done by descriptor and without following symlinks, and with the rights of the directory's [Owner].
//
//	f, err := outfile.Create("image.tar")
//	defer f.Abort()
//	_, err = f.Write(data)
//	err = f.Close()
package outfile
