package seed

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Seed is a set of names and what is known of them without their source.
type Seed struct {
	Entries []Entry

	// Dirs are directories that have to be there as well, of which only the
	// name is known. Those that hold an entry need not be named.
	Dirs []layers.Path
}

// Entry is one seeded file.
type Entry struct {
	Path layers.Path

	// Mode is type and permissions. If it is not ModeKnown it is a guess, which
	// is used only without a source; 0 is no guess either: such a file is there
	// only if there is a source, and never under a flat name.
	Mode      uint32
	ModeKnown bool

	Size      int64 // bytes
	SizeKnown bool

	BuildID []byte // of an ELF file; nil: unknown
}

// Names is the way in which seeded files are named in the layer.
type Names uint8

const (
	Tree Names = iota // where they were
	Flat              // all in the root directory, "/" in their paths replaced by "."
)

// flatName is how LazyFS names p.
func flatName(p layers.Path) string { return strings.ReplaceAll(string(p), "/", ".") }

// CollisionError: two files have one name in a flat layer.
type CollisionError struct {
	Name string
	A, B layers.Path
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("%q and %q are both %q with names=flat: use names=tree", "/"+e.A, "/"+e.B, e.Name)
}

// Mismatch says how one file on the source differs from the seed.
type Mismatch struct {
	Path layers.Path
	What string // "size 5, was 7"
}

// MismatchError lists every file of the seed that the source no longer has as
// it was. Nobody may go on with such files.
type MismatchError struct {
	Layer string // as Inner's ID names it
	Files []Mismatch
}

// maxNamed bounds how many files a MismatchError spells out on its one line.
const maxNamed = 20

func (e *MismatchError) Error() string {
	var b strings.Builder
	for i, m := range e.Files {
		if i == maxNamed {
			fmt.Fprintf(&b, "; and %d more", len(e.Files)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%q: %s", "/"+string(m.Path), m.What)
	}
	return fmt.Sprintf("%d of the checkpoint's files changed on the source since the dump: %s: bring them back, or dump again", len(e.Files), b.String())
}

// compare says how what the source has (have) differs from e, which was so at since;
// "" if it does not. Build-ids are compared apart.
func (e *Entry) compare(have *layers.Attr, since layers.Time) string {
	if e.ModeKnown && e.Mode&unix.S_IFMT != have.Type() {
		return fmt.Sprintf("%s, was %s", typeName(have.Mode), typeName(e.Mode))
	}
	if e.SizeKnown && have.IsRegular() && have.Has(layers.KnownSize) && have.Size != e.Size {
		return fmt.Sprintf("size %d, was %d", have.Size, e.Size)
	}
	if e.ModeKnown && e.Mode != have.Mode {
		return fmt.Sprintf("mode %04o, was %04o", have.Mode&07777, e.Mode&07777)
	}
	if since != (layers.Time{}) && have.IsRegular() && have.Has(layers.KnownTimes) && later(have.Mtime, since) {
		return fmt.Sprintf("modified at %s, after the dump", time.Unix(have.Mtime.Sec, int64(have.Mtime.Nsec)).UTC().Format(time.DateTime))
	}
	return ""
}

// later reports whether a comes after b. A source that does not know nanoseconds has
// none.
func later(a, b layers.Time) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec && b.Nsec != 0
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symlink"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFBLK, unix.S_IFCHR:
		return "a device"
	}
	return "something unknown"
}

// attr is what the seed alone says of e.
func (e *Entry) attr() layers.Attr {
	a := layers.Attr{Mode: e.Mode}
	if e.SizeKnown {
		a.Known, a.Size = layers.KnownSize, e.Size
	}
	return a
}

// check refuses a seed that contradicts itself.
func (s *Seed) check() error {
	kinds := make(map[layers.Path]uint32, len(s.Entries))
	for i := range s.Entries {
		e := &s.Entries[i]
		if !e.Path.Valid() {
			return fmt.Errorf("seed: %q is not a path inside a layer", string(e.Path))
		}
		if _, twice := kinds[e.Path]; twice {
			return fmt.Errorf("seed: %q is listed twice", "/"+string(e.Path))
		}
		if e.SizeKnown && e.Size < 0 {
			return fmt.Errorf("seed: %q has size %d", "/"+string(e.Path), e.Size)
		}
		kinds[e.Path] = e.Mode & unix.S_IFMT
	}
	for _, d := range s.Dirs {
		if !d.Valid() {
			return fmt.Errorf("seed: %q is not a path inside a layer", string(d))
		}
	}
	dirs := s.parents()
	if len(dirs)+len(s.Entries) > maxNodes {
		return fmt.Errorf("seed: more than %d names and directories", maxNodes)
	}
	for p := range dirs {
		if k, listed := kinds[p]; listed && k != unix.S_IFDIR && k != 0 {
			return fmt.Errorf("seed: %q is not a directory but others lie in it", "/"+string(p))
		}
	}
	return nil
}

// maxNodes bounds the names of a seed, with the directories that lead to them:
// each costs memory here and a request to the source. One path of 4 KiB can have
// two thousand of them.
const maxNodes = 1 << 19

// parents returns every directory that holds a seeded name, and s.Dirs with
// those that hold them; or some more than maxNodes of them.
func (s *Seed) parents() map[layers.Path]bool {
	dirs := map[layers.Path]bool{layers.Root: true}
	add := func(p layers.Path) {
		for !dirs[p] && len(dirs) <= maxNodes {
			dirs[p] = true
			p, _ = p.Split()
		}
	}
	for i := range s.Entries {
		dir, _ := s.Entries[i].Path.Split()
		add(dir)
	}
	for _, d := range s.Dirs {
		add(d)
	}
	return dirs
}

// sorted returns the keys of set in order.
func sorted[V any](set map[layers.Path]V) []layers.Path {
	ps := make([]layers.Path, 0, len(set))
	for p := range set {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}
