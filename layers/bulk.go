package layers

import "context"

// Wanted names a regular file, and the version of it that is wanted.
type Wanted struct {
	Path Path
	Attr *Attr // not nil: what a Stat or a ReadDir has said of it
}

// Content is one answer of ReadMany.
type Content struct {
	Data []byte // the whole file: Attr.Size bytes, unless Err is set

	// Settled: a change made after this moment is sure to show in the version.
	// What is not settled serves the read that wanted it and is not kept.
	Settled bool

	Err error // as Layer.Open and File.ReadAt have them
}

// BulkReader is an optional ability of a Layer that can read many small files in few
// exchanges with its storage. Answers stand at the index of their file; the error is
// for the exchange as a whole. The caller bounds the sum of the sizes: all of it is
// held in memory.
type BulkReader interface {
	ReadMany(ctx context.Context, files []Wanted) ([]Content, error)
}

// Listing is one answer of ReadDirs.
type Listing struct {
	Entries []Entry
	Err     error // as Layer.ReadDir has it
}

// BulkLister is an optional ability of a Layer that can list many directories in few
// exchanges with its storage. Answers stand at the index of their path; the error is
// for the exchange as a whole.
type BulkLister interface {
	ReadDirs(ctx context.Context, paths []Path) ([]Listing, error)
}

// Listed is a directory whose names are known.
type Listed struct {
	Path    Path
	Entries []Entry
}

// Scout is an optional ability of a Layer that sees who walks through its directories,
// and lists ahead of him.
type Scout interface {
	// Coming returns the directories that somebody who walks, and has come to from, comes
	// to next, in that order: those that are known already, hold more than directories,
	// and were not come to. One has any number of names, several no more than that. It
	// asks nobody; where nobody walks there are none.
	Coming(from Path, names int) []Listed
}

type backgroundKey struct{}

// Background marks what is done under ctx as work that nobody waits for. A layer with
// a link to share gives way with it to everything else.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

// IsBackground reports whether Background made ctx.
func IsBackground(ctx context.Context) bool {
	return ctx.Value(backgroundKey{}) != nil
}
