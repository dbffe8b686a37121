// Package inflate decompresses gzip streams (RFC 1952, RFC 1951) at about twice the speed of a decoder that reads bit by
// bit and byte by byte. It is for large streams: layers of images.
//
// Vocabulary. A member is one gzip header, one DEFLATE stream and one trailer; a stream is a row of members. A block is a
// part of a DEFLATE stream with its own codes. An entry is what a table says about the next bits: literals, the length of
// a match, a distance. The history is the last 32 KiB of output, to which distances reach back.
//
// What is fast. Bits are kept in 64 bits that are refilled eight bytes at a time; a table entry says everything about a
// symbol in one word, extra bits included; two literals whose codes are short share an entry; matches are copied in words;
// bounds are checked once per turn of the loop ([Reader.Fill] gives it buffers with room to spare).
//
// What is accepted and refused is exactly what compress/gzip accepts and refuses; the tests compare both.
//
//	z, err := inflate.NewReader(blob)
//	_, err = io.Copy(w, z)
//
// Without the copy, straight into buffers of the caller's:
//
//	mem := make([]byte, inflate.Overhead+256<<10)
//	for {
//		data, err := z.Fill(mem) // data is a part of mem
//		…
//	}
package inflate
