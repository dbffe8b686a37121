package relayer

import "github.com/strata-build/strata/diag"

// maxNames bounds the memory of the names in the lists of packages of one kind, in bytes.
const maxNames = 256 << 20

// nameBudget counts the memory that names may still take. Names in lists are made of parts, and may be far longer than the lists: a
// directory stands once before many files, entries of a header overlap, and many packages have one list.
type nameBudget struct{ left int }

func newNameBudget() *nameBudget { return &nameBudget{maxNames} }

// take reports whether there is room for a name of n bytes.
func (b *nameBudget) take(n int) bool {
	const header = 16 // of a string
	b.left -= n + header
	return b.left >= 0
}

func (b *nameBudget) err() error {
	if b.left >= 0 {
		return nil
	}
	return diag.Errorf(diag.Exhausted, "the names in the lists of packages take more than %d bytes", maxNames)
}
