package criu

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/seed"
)

// Seed returns the files of the checkpoint that lie on storage which stays
// behind, in the root tree, with what the images say of them. Those on external
// mounts are elsewhere: see Trees.
func (c *Checkpoint) Seed() seed.Seed {
	var s seed.Seed
	for i := range c.Files {
		f := &c.Files[i]
		if f.Place != OnDisk || f.Tree != "/" {
			continue
		}
		s.Entries = append(s.Entries, f.Entry(layerPath(f.TreePath)))
	}
	for _, d := range c.dirs {
		s.Dirs = append(s.Dirs, layerPath(d))
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
