// Package archive reads and writes files that hold images: OCI layouts, the archives of docker save in all their forms,
// skopeo's dir:. It needs no store; who has one brings blobs from there.
//
// Reading. [Open] indexes a directory or a tar, whatever its outer compression; [Archive.Entries] lists the images in it,
// [Pick] chooses one. An entry is a document of a layout, whose parts [Archive.Document] and [Archive.Blob] read, or an
// image of docker save, which [Archive.ReadDocker] reads. Documents are verified here, blobs by whoever reads them.
//
//	a, err := archive.Open(ctx, "app.tar", nil, tempDir)
//	defer a.Close()
//	all, err := a.Entries()
//	e, err := archive.Pick(all, "app:1")
//
// Writing. A [Set] is an image, or an index of images, with every [Blob] known by digest and size; contents are made when
// they are written. [OCIFiles], [DockerFiles], [LegacyFiles] and [DirFiles] list the files of a format, [WriteTar] and
// [WriteDir] write them. Nothing in them depends on the machine or the time.
//
//	files, err := archive.OCIFiles([]archive.Set{set})
//	err = archive.WriteTar(ctx, w, files)
package archive
