package criu

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/seed"
)

// PathOf is the path that f, which is OnDisk, has in the layer that has the checkpoint's
// files. That is the root tree; those on external mounts are elsewhere. Once MapTree has
// said where trees lie, it is the root of the host that was dumped, and has them all.
func (c *Checkpoint) PathOf(f *File) (p layers.Path, ok bool) {
	if f.Place != OnDisk {
		return "", false
	}
	return c.pathIn(inTree{f.Tree, f.TreePath})
}

func (c *Checkpoint) pathIn(in inTree) (p layers.Path, ok bool) {
	if !c.mapped {
		return layerPath(in.path), in.key == "/"
	}
	for i := range c.Trees {
		if t := &c.Trees[i]; t.Key == in.key && t.HostDir != "" && !t.given {
			return layerPath(path.Join(t.HostDir, in.path)), true
		}
	}
	return "", false
}

// Seed returns the files of the checkpoint that lie on storage which stays
// behind, by their PathOf, with what the images say of them.
func (c *Checkpoint) Seed() seed.Seed {
	var s seed.Seed
	at := make(map[layers.Path]int)
	for i := range c.Files {
		p, ok := c.PathOf(&c.Files[i])
		if !ok {
			continue
		}
		e := c.Files[i].Entry(p)
		j, seen := at[p]
		if !seen {
			at[p] = len(s.Entries)
			s.Entries = append(s.Entries, e)
			continue
		}
		// The tasks have it by two paths, one of them through a bind mount.
		if known := &s.Entries[j]; !known.SizeKnown {
			known.Size, known.SizeKnown = e.Size, e.SizeKnown
		}
	}
	for _, d := range c.dirs {
		if p, ok := c.pathIn(d); ok {
			s.Dirs = append(s.Dirs, p)
		}
	}
	return s
}

// Entry is what the images say of f, as the seed of the file at p.
func (f *File) Entry(p layers.Path) seed.Entry {
	e := seed.Entry{
		Path:      p,
		Mode:      f.Mode,
		ModeKnown: f.Mode != 0 && f.Mode != unix.S_IFDIR, // that is a guess, of flagsMode
		Size:      f.Size,
		SizeKnown: f.SizeKnown,
		BuildID:   f.BuildID,
	}
	if !e.ModeKnown {
		e.Mode = f.guessMode()
	}
	return e
}

// guessMode is the mode to show without a source for a file whose mode the
// images do not have; 0 if it may as well be a directory.
func (f *File) guessMode() uint32 {
	if f.Mode == unix.S_IFDIR {
		return unix.S_IFDIR | 0o755
	}
	for _, r := range f.Refs {
		if r.Kind != Watch {
			return unix.S_IFREG | 0o444
		}
	}
	return 0
}
