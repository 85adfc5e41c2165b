package layers

import (
	"context"
	"strings"
)

// Path names a file inside a layer: relative to its root, components separated
// by single slashes, none of them "", "." or "..", no NUL. The root is "".
// Components are bytes, not text: any byte but '/' and NUL may occur.
type Path string

// Root is the path of a layer's root directory.
const Root Path = ""

// NameMax is the longest component that any layer accepts, in bytes (NAME_MAX).
const NameMax = 255

// Join returns the path of name in directory p. The name must be ValidName.
func (p Path) Join(name string) Path {
	if p == Root {
		return Path(name)
	}
	return p + "/" + Path(name)
}

// Split returns the directory of p and the last component. Root splits into
// (Root, "").
func (p Path) Split() (dir Path, name string) {
	if i := strings.LastIndexByte(string(p), '/'); i >= 0 {
		return p[:i], string(p[i+1:])
	}
	return Root, string(p)
}

// Components returns the components of p, outermost first; none for the root.
func (p Path) Components() []string {
	if p == Root {
		return nil
	}
	return strings.Split(string(p), "/")
}

// Valid reports whether p is a clean path that stays inside its layer.
func (p Path) Valid() bool {
	for _, c := range p.Components() {
		if !ValidName(c) {
			return false
		}
	}
	return true
}

// ValidName reports whether name can be one component of a Path. Whatever comes
// from a wire, an image or a disk passes through here before it is used.
func ValidName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= NameMax &&
		!strings.ContainsAny(name, "/\x00")
}

// Layer is a tree that can be read. See the package comment for what every
// implementation promises.
type Layer interface {
	// ID tells this layer from every other, across restarts: equal IDs mean the
	// same tree on the same host. It is used in keys on disk and is not secret.
	ID() string

	// Stat returns the attributes of p itself (a symlink is not followed).
	Stat(ctx context.Context, p Path) (Attr, error)

	// ReadDir returns every entry of the directory p but "." and "..", in no
	// particular order. Entries carry Attr where the layer has it for free.
	// Names that are not ValidName are left out.
	ReadDir(ctx context.Context, p Path) ([]Entry, error)

	// Readlink returns the target of the symlink p, as stored.
	Readlink(ctx context.Context, p Path) (string, error)

	// Xattrs returns every extended attribute of p that the layer can see, ACLs
	// (system.posix_acl_*) included. A layer that has none returns nil, nil.
	Xattrs(ctx context.Context, p Path) (Xattrs, error)

	// Open opens the regular file p for reading. Opening anything else is
	// ErrNotRegular and has no side effect, a FIFO's included. If want is not
	// nil, the file must still be the one that want describes (SameVersion); if
	// it is not, nothing is returned but ErrStale.
	Open(ctx context.Context, p Path, want *Attr) (File, error)

	// Statfs describes the filesystem under the layer.
	Statfs(ctx context.Context) (Statfs, error)

	// Close ends the layer's use of its resources. Files opened from it fail
	// afterwards.
	Close() error
}

// File is one version of one regular file, open for reading; safe for
// concurrent use.
type File interface {
	// ReadAt reads len(b) bytes from offset off, as io.ReaderAt does: n < len(b)
	// comes with an error, io.EOF at the end of the file. ErrStale means that
	// the source no longer has the version that was opened; nothing of a newer
	// version is ever returned.
	ReadAt(ctx context.Context, b []byte, off int64) (n int, err error)

	// Attr returns the attributes the file had when it was opened.
	Attr() Attr

	Close() error
}

// Descriptor is an optional ability of a File: a local descriptor of it, for
// reflink, copy_file_range and SEEK_DATA. It stays owned by the File.
type Descriptor interface {
	Fd() int
}

// Offliner is an optional ability of a Layer whose storage can be out of reach.
type Offliner interface {
	// Offline returns nil while the layer's storage can be reached, else why
	// it cannot.
	Offline() error
}

// BulkStater is an optional ability of a Layer that can stat many paths in one
// exchange with its storage. Answers stand at the index of their path; errs[i]
// is nil where attrs[i] holds. The error is for the exchange as a whole.
type BulkStater interface {
	StatMany(ctx context.Context, paths []Path) (attrs []Attr, errs []error, err error)
}
