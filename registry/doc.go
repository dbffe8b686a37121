// Package registry speaks to image registries: it finds, reads and writes manifests and blobs.
//
// The protocol is that of the OCI distribution specification 1.1 and of Docker's token authentication. A [Client] serves
// every registry; [Client.For] gives one build its own credentials over shared connections. A [Ref] is a parsed image
// reference; a descriptor names content by digest and size; an *endpoint* is one server that answers for a registry: the
// registry itself or one of its mirrors.
//
// Nothing that a server says about content is believed: manifests are hashed before they are decoded, blobs while they are
// read. Credentials go to the registry and to its token server only, never along a redirect.
//
//	c := registry.New(registry.Config{Credentials: registry.DockerCredentials("")})
//	ref, err := registry.ParseRef("debian:12")          // docker.io/library/debian:12
//	desc, err := c.Resolve(ctx, ref)
//	raw, err := c.Manifest(ctx, ref, desc)              // bytes with desc.Digest
//	doc, err := registry.Decode(raw, desc.MediaType)    // a manifest or an index
//	body, err := c.Fetch(ctx, ref, doc.Manifest.Layers[0], 0)
package registry
