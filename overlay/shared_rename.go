package overlay

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// renamedBelow is called after a rename in a lower, of what was described by p, to the
// directory dir there. Other hosts may have made something at the new name in the
// upper, where it would hide what moved: that was before, and is replaced as by any
// rename; or brought up what moved, if our claim was broken: then that moves, too.
func (fs *FS) renamedBelow(m *move, p *part, dir *dirFD, claims claimed) error {
	if claims == nil || m.exchange() {
		return nil
	}
	o := p.origin()
	err := fs.inUpperAt(m.to, func(dirfd int, stx *unix.Statx_t) error {
		origin, err := copyup.ReadOrigin(dirfd, m.to.name)
		switch {
		case err != nil || origin == o:
			return err // brought up from its new name
		case claims.whole(), origin != "" && claims[origin] != nil:
			return fs.replace(m, p, dirfd, stx)
		}
		return errChanged
	})
	if err != nil {
		// It is not replaced: as if we had not been there.
		if uerr := sys.Rename(dir.fd, m.to.name, p.d.fd, m.from.name, unix.RENAME_NOREPLACE); uerr != nil {
			fs.log.Warn("a rename in a lower cannot be taken back", "name", m.from.name, "cause", uerr)
		}
		return err
	}
	if claims.whole() {
		return nil
	}
	return fs.follow(m, o)
}

// replace takes away what another host made at the new name, as rename(2) would have.
func (fs *FS) replace(m *move, p *part, dirfd int, stx *unix.Statx_t) error {
	isDir := stx.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case m.flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case isDir && !p.isDir():
		return unix.EISDIR
	case !isDir && p.isDir():
		return unix.ENOTDIR
	case isDir:
		return ignoreGone(sys.Rmdir(dirfd, m.to.name))
	}
	_, err := fs.removeIf(dirfd, m.to.name, fileID{unix.Mkdev(stx.Dev_major, stx.Dev_minor), stx.Ino})
	return err
}

// follow moves what another host brought up from the old name meanwhile.
func (fs *FS) follow(m *move, o copyup.Origin) error {
	if !fs.succeededAt(m.from, o) || !fs.notice(m.to.parent) {
		return nil
	}
	from, err := fs.upperDir(m.from.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(from)
	to, err := fs.upperDir(m.to.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(to)
	err = sys.Rename(from.fd, m.from.name, to.fd, m.to.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
