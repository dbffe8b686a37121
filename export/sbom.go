package export

import (
	"encoding/json"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strata-build/strata/image"
	"github.com/strata-build/strata/outfile"
)

// noteLayers adds to each file of an SPDX document in which layer of the image it is, as a comment, where there is none yet. A
// document that cannot be read stays as it is.
// Source: SPDX 2.3, JSON form; BuildKit's docs/attestations/sbom.md.
func noteLayers(doc []byte, find func(name string) (image.Descriptor, bool)) []byte {
	var d map[string]any
	if statementLimits.Unmarshal(doc, &d) != nil || d["spdxVersion"] == nil {
		return doc
	}
	noteFiles(d, find)
	if packages, ok := d["packages"].([]any); ok {
		for _, p := range packages {
			if p, ok := p.(map[string]any); ok {
				noteFiles(p, find)
			}
		}
	}
	info, ok := d["creationInfo"].(map[string]any)
	if !ok {
		info = map[string]any{}
		d["creationInfo"] = info
	}
	creators, _ := info["creators"].([]any)
	info["creators"] = append(creators, "Tool: strata")
	out, err := json.Marshal(d)
	if err != nil {
		return doc
	}
	return out
}

func noteFiles(d map[string]any, find func(string) (image.Descriptor, bool)) {
	files, _ := d["files"].([]any)
	for _, f := range files {
		f, ok := f.(map[string]any)
		if !ok {
			continue
		}
		name, _ := f["fileName"].(string)
		if c, _ := f["comment"].(string); c != "" || name == "" {
			continue
		}
		if desc, ok := find(name); ok {
			f["comment"] = "layerID: " + desc.Digest.String()
		}
	}
}

// layerOf finds the topmost layer of an image that holds a file. Layers whose files are not here hold none.
func (e *Env) layerOf(im *Image, layers []image.Descriptor) func(string) (image.Descriptor, bool) {
	ids, ok := im.Tree.Layers()
	if !ok || len(ids) != len(layers) {
		return func(string) (image.Descriptor, bool) { return image.Descriptor{}, false }
	}
	return func(name string) (image.Descriptor, bool) {
		rel := strings.TrimPrefix(path.Join("/", name), "/")
		for i := len(ids) - 1; i >= 0; i-- {
			if hasFile(e.Store.LayerDir(ids[i]), rel) {
				return layers[i], true
			}
		}
		return image.Descriptor{}, false
	}
}

// hasFile reports whether a layer has a path, which a mark that something was deleted there does not count as.
func hasFile(dir, rel string) bool {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	at, err := outfile.Beneath(fd, path.Dir(rel), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if unix.Fstatat(at, path.Base(rel), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	return st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0
}
