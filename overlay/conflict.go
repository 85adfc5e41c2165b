package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A pending file whose source has another version by now, or is gone, is in conflict:
// what is here of it is kept, the rest is ESTALE, and the operator decides (resolve).
// That is noted on the stub, durably and for good: a source that gets its old time
// back, by touch(1) or by whoever puts a backup in place, has not got its old bytes
// back for all we know.

// errInConflict: the source of a pending file is another version than it came of.
var errInConflict = fmt.Errorf("in conflict with its source: %w", layers.ErrStale)

// conflictKind is what the note on a stub says.
type conflictKind string

const (
	conflictNone conflictKind = ""
	conflictOpen conflictKind = "conflict"
	conflictKept conflictKind = "kept" // the operator has given up what the source has
)

// conflictNote is the value of the xattr: the kind, the object that it is about, when
// (Unix time), and why, separated by spaces.
func conflictNote(kind conflictKind, id extent.ID, when time.Time, why string) []byte {
	const most = 256
	return fmt.Appendf(nil, "%s %s %d %s", kind, id, when.Unix(), why[:min(len(why), most)])
}

// noted is a note that was read.
type noted struct {
	since time.Time
	why   string
}

// conflictOf reads what is noted of the object id. A note about an object that the
// stub had before is none.
func (fs *FS) conflictOf(id extent.ID) (kind conflictKind, n noted, err error) {
	v, err := sys.Getxattr(fs.stubs, id.String(), fs.cfg.Format.Name(whiteout.Conflict))
	if err != nil {
		return conflictNone, n, ignoreNoXattr(err)
	}
	part := strings.SplitN(string(v), " ", 4)
	if len(part) < 4 {
		return conflictNone, n, fmt.Errorf("note %q on the stub of %s: %w", v, id, layers.ErrCorrupt)
	}
	sec, err := strconv.ParseInt(part[2], 10, 64)
	if err != nil {
		return conflictNone, n, fmt.Errorf("note %q on the stub of %s: %w", v, id, layers.ErrCorrupt)
	}
	if part[1] != id.String() {
		return conflictNone, n, nil
	}
	return conflictKind(part[0]), noted{time.Unix(sec, 0), part[3]}, nil
}

// noteConflict notes, durably, that the source of the object id is another version.
// What cannot be noted holds for as long as this process serves.
func (fs *FS) noteConflict(id extent.ID, path layers.Path, cause error) {
	if kind, _, err := fs.conflictOf(id); err == nil && kind != conflictNone {
		return
	}
	why := "changed on the source"
	if nothing(cause) {
		why = "gone from the source"
	}
	fs.log.Warn("a file with changes of ours is in conflict with its source: see 'migratefs resolve'",
		"source", string(path), "cause", cause)
	if err := fs.setConflict(id, conflictOpen, why); err != nil {
		fs.log.Error("a conflict could not be noted", "source", string(path), "cause", err)
	}
	fs.fill.inConflict(id, true)
}

func (fs *FS) setConflict(id extent.ID, kind conflictKind, why string) error {
	name := fs.cfg.Format.Name(whiteout.Conflict)
	err := sys.Setxattr(fs.stubs, id.String(), name, conflictNote(kind, id, time.Now(), why), 0)
	if err != nil || fs.cfg.Volatile {
		return err
	}
	return fs.syncStub(id)
}

// syncStub makes the stub of id durable.
func (fs *FS) syncStub(id extent.ID) error {
	path, err := sys.OpenAt(fs.stubs, id.String(), unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	return withReadable(path, sys.Fsync)
}

// staleIfGone is what it means that a source has no such file, or none that is
// regular: it was there, and what we have of it is that version's.
func staleIfGone(err error) error {
	if nothing(err) || errors.Is(err, layers.ErrNotRegular) {
		return fmt.Errorf("%w: %w", layers.ErrStale, err)
	}
	return err
}

// A Conflict is a pending file whose source has another version than it came of.
type Conflict struct {
	Path    layers.Path // in the mount; of several names one; empty: none is known
	Source  layers.Path // where it came from
	LayerID string
	Since   time.Time
	Why     string
	Size    int64
	Missing int64 // bytes that cannot be had any more
	Written int64 // bytes that were written here

	id extent.ID
}

// Conflicts returns the files that wait for the operator's word.
func (fs *FS) Conflicts(ctx context.Context) ([]Conflict, error) {
	ids := fs.fill.conflicts()
	if slices.ContainsFunc(ids, func(id extent.ID) bool { return fs.fill.pathOf(id) == "" }) {
		if err := fs.fill.findNames(ctx); err != nil {
			return nil, err
		}
	}
	var all []Conflict
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, ok, err := fs.conflict(id)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, c)
		}
	}
	return all, nil
}

// conflict describes the conflict of the object id; ok is false if there is none.
func (fs *FS) conflict(id extent.ID) (c Conflict, ok bool, err error) {
	kind, note, err := fs.conflictOf(id)
	if err != nil || kind != conflictOpen {
		return c, false, ignoreGone(err)
	}
	obj, err := fs.store.Pending(id)
	if err != nil {
		return c, false, err
	}
	defer obj.Close()
	from := obj.Source()
	c = Conflict{
		Source: from.Path, LayerID: from.LayerID, Since: note.since, Why: note.why,
		Size: obj.Size(), Missing: obj.Missing(), id: id,
	}
	for _, r := range obj.Dirty() {
		c.Written += r.Len
	}
	c.Path = fs.fill.pathOf(id)
	return c, true, nil
}
