package criu

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/seed"
)

// Seed returns the files of the checkpoint that lie on storage which stays
// behind, with what the images say of them.
func (c *Checkpoint) Seed() seed.Seed {
	var s seed.Seed
	for i := range c.Files {
		f := &c.Files[i]
		if f.Place != OnDisk {
			continue
		}
		e := seed.Entry{
			Path:      layerPath(f.Path),
			Mode:      f.Mode,
			ModeKnown: f.Mode != 0 && f.Mode != unix.S_IFDIR, // that is a guess, of flagsMode
			Size:      f.Size,
			SizeKnown: f.SizeKnown,
			BuildID:   f.BuildID,
		}
		if !e.ModeKnown {
			e.Mode = f.guessMode()
		}
		s.Entries = append(s.Entries, e)
	}
	for _, d := range c.dirs {
		s.Dirs = append(s.Dirs, layerPath(d))
	}
	return s
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
