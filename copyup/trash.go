package copyup

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

const (
	// PathSuffix marks the symlink beside a file in the trash that holds where it lay.
	PathSuffix = pathSuffix
	// DoneSuffix marks a file in the trash that is to go, whatever becomes of its
	// successor.
	DoneSuffix = doneSuffix
)

// Trashed is a file in the trash of a lower.
type Trashed struct {
	Name  string      // in the trash
	Path  layers.Path // where it lay, from the lower's root
	When  layers.Time // when it was removed
	Attr  layers.Attr
	Match bool // it is the file that was meant
}

// LookTrash returns what the trash directory dir holds under name. ENOENT means
// that nothing says where it lay, layers.ErrCorrupt that this is no place in a
// lower.
func LookTrash(dir int, name string) (t Trashed, err error) {
	t.Name = name
	var stx, note unix.Statx_t
	if err := sys.Statx(dir, name, &stx); err != nil {
		return t, err
	}
	t.Attr = local.AttrOf(&stx)
	t.Match = meant(&t.Attr, name)
	target, err := sys.Readlink(dir, name+PathSuffix)
	if err != nil {
		return t, err
	}
	if err := sys.Statx(dir, name+PathSuffix, &note); err != nil {
		return t, err
	}
	t.Path, t.When = layers.Path(target), local.AttrOf(&note).Mtime
	if t.Path == layers.Root || !t.Path.Valid() {
		return t, layers.ErrCorrupt
	}
	return t, nil
}

// TrashName is a name for the file a in the trash.
func TrashName(a *layers.Attr) string { return trashName(a) }
