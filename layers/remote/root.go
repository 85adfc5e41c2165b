package remote

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// rootID is what the root is recognised by. A source whose filesystem was
// unmounted still has a directory at that path, and it is empty; what differs is
// the filesystem.
type rootID struct {
	path string // real path: no symlink in it

	known   bool // the server has statvfs@openssh.com
	fsid    uint64
	frsize  uint32
	namelen uint32

	ino   uint64 // 0 unless the server is our own
	btime layers.Time
}

// meetRoot looks at the root on a new channel. The first time it records the
// root's identity, later it compares.
func (l *Layer) meetRoot(ctx context.Context, c *conn, first bool) error {
	if !first {
		replies, err := c.do(ctx, l.askWhere(layers.Root, c)...)
		if err != nil {
			return err
		}
		if _, err = l.where(replies, layers.Root); errors.Is(err, errNames) {
			err = nil // it is the root, whoever it belongs to
		}
		return err
	}
	given := l.cfg.Target.Path
	look := func(path string) []request {
		reqs := []request{askPath(fxpLstat, path)}
		if c.caps.statvfs {
			reqs = append(reqs, askStatvfs(path))
		}
		return reqs
	}
	// Mostly the path is the real one already: then one exchange does.
	replies, err := c.do(ctx, append([]request{askPath(fxpRealpath, given)}, look(given)...)...)
	if err != nil {
		return err
	}
	name, err := replies[0].name()
	if err != nil {
		return noRoot(given, err)
	}
	if name[0] != '/' || len(name) > pathMax {
		return corrupt("%q as the real path of %q", name[:min(len(name), 200)], given)
	}
	if replies = replies[1:]; name != given {
		if replies, err = c.do(ctx, look(name)...); err != nil {
			return err
		}
	}
	a, err := replies[0].attrs()
	if err != nil {
		return noRoot(given, err)
	}
	if !a.IsDir() {
		return noRoot(given, unix.ENOTDIR)
	}
	l.root = rootID{path: name}
	if c.caps.statvfs {
		v, err := replies[1].statvfs()
		if err != nil {
			return noRoot(given, err)
		}
		l.root.known, l.root.fsid, l.root.frsize, l.root.namelen = true, v.Fsid, v.Frsize, v.NameLen
		l.root.ino, l.root.btime = v.ino, v.btime
	}
	return nil
}

// noRoot says what is wrong with the path on the source.
func noRoot(path string, err error) error {
	switch {
	case broken(err):
		return err
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%q: %w on the source: check the path", path, unix.ENOENT)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%q: %w on the source: name a directory", path, unix.ENOTDIR)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%q: %w on the source: log in as a user who may enter it", path, unix.EACCES)
	}
	return fmt.Errorf("%q on the source: %w", path, err)
}

// askWhere asks for what tells that the directory dir is a real place in the
// layer: its attributes, its real path, and whether the root is still the one
// that was mounted. It goes behind other requests in one burst; where reads the
// answers.
func (l *Layer) askWhere(dir layers.Path, c *conn) []request {
	reqs := []request{
		askPath(fxpLstat, l.path(dir)),
		askPath(fxpRealpath, l.path(dir)),
	}
	return append(reqs, l.askRoot(c))
}

// askRoot asks whether the root is still the one that was mounted.
func (l *Layer) askRoot(c *conn) request {
	if l.root.known {
		return askStatvfs(l.root.path)
	}
	return askPath(fxpLstat, l.root.path)
}

// sameRoot reads the answer to askRoot. Blocks are not compared: filesystems
// grow, and ZFS and btrfs report what is left. Filesystems without an fsid (NFS,
// FUSE) have zero, which still differs from what lies under their mountpoint.
func (l *Layer) sameRoot(r *reply) error {
	gone := func(what string) error { return fmt.Errorf("%w: %s", layers.ErrReplaced, what) }
	if !l.root.known {
		a, err := r.attrs()
		switch {
		case isStatus(err, fxNoSuchFile):
			return gone("the root does not exist any more")
		case err == nil && !a.IsDir():
			return gone("the root is no directory any more")
		}
		return err
	}
	v, err := r.statvfs()
	switch {
	case isStatus(err, fxNoSuchFile):
		return gone("the root does not exist any more")
	case err != nil:
		return err
	case v.Fsid != l.root.fsid || v.Frsize != l.root.frsize || v.NameLen != l.root.namelen:
		return gone("the root lies on another filesystem; is the right one mounted there?")
	case v.ino != 0 && l.root.ino != 0 && (v.ino != l.root.ino || v.btime != l.root.btime):
		return gone("the root is another directory")
	}
	return nil
}

// errVague: the server says "no such file" for the parent as well, so another
// look is needed to tell which component is missing or not a directory.
var errVague = errors.New("some parent is not there")

// where reads the answers to askWhere. Without an error dir is a directory, no
// component of its path is a symlink and the root is the one that was mounted:
// what the same burst has said about names in dir holds. errVague means that a
// component of dir, or dir itself, is not there or no directory; that may be the
// root's, so it is for whyAbsent to say.
func (l *Layer) where(replies []reply, dir layers.Path) (layers.Attr, error) {
	if err := l.sameRoot(&replies[2]); err != nil {
		return layers.Attr{}, err
	}
	a, err := l.attrs(&replies[0])
	strange := errors.Is(err, errNames)
	if strange {
		err = nil // first where it is
	}
	vague := func(err error) (layers.Attr, error) {
		if isStatus(err, fxNoSuchFile) || leadsOut(err) {
			if dir == layers.Root {
				err = fmt.Errorf("%w: the root does not exist any more", layers.ErrReplaced)
			} else {
				err = errVague
			}
		}
		return a, err
	}
	if err != nil {
		return vague(err)
	}
	real, err := replies[1].name()
	switch {
	case dir != layers.Root && (err == nil && real != l.path(dir) || !a.IsDir()):
		// What is no directory may be the root.
		return a, errVague
	case err != nil:
		return vague(err)
	case real != l.path(dir):
		return a, fmt.Errorf("%w: its path leads to %q now", layers.ErrReplaced, real)
	case !a.IsDir():
		return a, fmt.Errorf("%w: the root is no directory any more", layers.ErrReplaced)
	}
	if strange {
		return a, errNames
	}
	return a, nil
}

// whyAbsent finds out which component of the directory dir is missing or is no
// directory; the root is neither. It costs one more exchange and is needed only
// where a caller asks for a path whose parent it has not seen.
func (l *Layer) whyAbsent(ctx context.Context, c *conn, dir layers.Path) error {
	var reqs []request
	var at layers.Path
	for _, name := range dir.Components() {
		at = at.Join(name)
		reqs = append(reqs, askPath(fxpLstat, l.path(at)))
	}
	n := len(reqs)
	replies, err := c.do(ctx, append(reqs, l.askWhere(layers.Root, c)...)...)
	if err != nil {
		return err
	}
	if _, err := l.where(replies[n:], layers.Root); err != nil {
		return err
	}
	for i := range replies[:n] {
		a, err := replies[i].attrs()
		switch {
		case isStatus(err, fxNoSuchFile):
			return unix.ENOENT
		case err != nil:
			return err
		case !a.IsDir():
			return unix.ENOTDIR
		}
	}
	return fmt.Errorf("%w: it came while it was looked for", layers.ErrStale)
}

// stands returns ErrReplaced if err, which says that a file is not what or where it
// was, comes of the root's being another one. It costs one more exchange.
func (l *Layer) stands(ctx context.Context, c *conn, err error) error {
	if !errors.Is(err, layers.ErrStale) {
		return err
	}
	replies, rerr := c.do(ctx, l.askWhere(layers.Root, c)...)
	if rerr == nil {
		_, rerr = l.where(replies, layers.Root)
	}
	if rerr != nil && !errors.Is(rerr, errNames) {
		return rerr
	}
	return err
}
