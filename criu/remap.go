package criu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"time"

	ghost "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
)

// remapGhost marks a ghost in images of CRIU before 1.7, which had no types.
const remapGhost = 1 << 31

// remaps marks what had no name when it was dumped: ghosts, whose content the
// images hold, files that had another name, by which CRIU links them anew, and
// what lay in /proc of a task that had ended.
func (l *loader) remaps() error {
	err := each(l.fsys, "remap-fpath.img", magicRemapFpath, func(r *remap.RemapFilePathEntry) error {
		f := l.byID(r.GetOrigId())
		if f == nil {
			return fmt.Errorf("file %d is remapped but described nowhere", r.GetOrigId())
		}
		kind, id := r.GetRemapType(), r.GetRemapId()
		if r.RemapType == nil && id&remapGhost != 0 {
			kind, id = remap.RemapType_GHOST, id&^remapGhost
		}
		f.Deleted = true
		switch kind {
		case remap.RemapType_GHOST:
			f.ghost = true
			return l.ghostFile(f, id)
		case remap.RemapType_LINKED:
			to := l.files[id]
			if to == nil {
				return fmt.Errorf("file %q has another name, file %d, which is described nowhere", clip(f.Path), id)
			}
			if to == f || to.linked != nil || f.isLink {
				return fmt.Errorf("the other names of file %q lead in a circle", clip(f.Path))
			}
			f.linked, to.isLink, f.Remap = to, true, to.Path
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// ghostFile reads what the images say of a file they hold. Its content is not
// looked at, but whether it is there.
func (l *loader) ghostFile(f *file, id uint32) error {
	name := fmt.Sprintf("ghost-file-%x.img", id)
	im, err := openImage(l.fsys, name, magicGhost)
	if errors.Is(err, fs.ErrNotExist) {
		l.obstacle(Obstacle{
			Level: Blocker, What: "deleted file", Path: f.Path,
			Why: fmt.Sprintf("%s, which holds its content, is missing", name), Remedy: "copy the images again, all of them",
		})
		return nil
	}
	if err != nil {
		return err
	}
	defer im.close()
	start := im.off
	var g ghost.GhostFileEntry
	if err := im.next(&g); err == io.EOF {
		return im.fail(start, ErrTruncated)
	} else if err != nil {
		return err
	}
	if g.GetSize() > math.MaxInt64 {
		return im.fail(start, fmt.Errorf("a deleted file of %d bytes", g.GetSize()))
	}
	if f.Mode == 0 {
		f.Mode = g.GetMode()
	}
	if t := g.GetMtim(); t != nil {
		f.ModTime = time.Unix(int64(t.GetTvSec()), int64(t.GetTvUsec())*1000)
	}
	if f.Mode&unix.S_IFMT != unix.S_IFREG || g.GetChunks() {
		return nil // no content, or in pieces with holes between them
	}
	if f.SizeKnown && im.left < f.Size || g.Size != nil && im.left < int64(g.GetSize()) {
		l.obstacle(Obstacle{
			Level: Blocker, What: "deleted file", Path: f.Path,
			Why: fmt.Sprintf("%s, which holds its content, ends early", name), Remedy: "copy the images again",
		})
	}
	if !f.SizeKnown {
		f.Size, f.SizeKnown = im.left, true
	}
	return nil
}
