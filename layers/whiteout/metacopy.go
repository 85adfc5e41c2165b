package whiteout

import (
	"fmt"

	"github.com/migratefs/migratefs/layers"
)

// Mark is the value of the xattr Metacopy: which fs-verity digest the data of the
// file must have, if any. Source: struct ovl_metacopy in fs/overlayfs/overlayfs.h
// and ovl_check_metacopy_xattr in fs/overlayfs/util.c of the Linux kernel.
type Mark struct {
	Algorithm byte   // FS_VERITY_HASH_ALG_*; 0 without a digest
	Digest    []byte // nil: any data will do
}

// markHeader is the length of struct ovl_metacopy without its digest: a byte each
// for version (0), length of the whole, flags and algorithm.
const markHeader = 4

// ParseMark parses the value of a metacopy xattr. An empty one, which is what the
// kernel writes without fs-verity, has no digest.
func ParseMark(v []byte) (Mark, error) {
	switch {
	case len(v) == 0:
		return Mark{}, nil
	case len(v) < markHeader || int(v[1]) != len(v):
		return Mark{}, fmt.Errorf("metacopy mark of %d bytes that does not give its length: %w", len(v), layers.ErrCorrupt)
	case v[0] != 0:
		return Mark{}, fmt.Errorf("metacopy mark of version %d, which is not known: %w", v[0], layers.ErrCorrupt)
	case len(v) == markHeader:
		return Mark{}, nil
	}
	return Mark{Algorithm: v[3], Digest: append([]byte(nil), v[markHeader:]...)}, nil
}
