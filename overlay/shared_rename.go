package overlay

import (
	"cmp"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

// renamedBelow is called after a rename in a lower, of what was described by p, to the
// directory dir there. Other hosts may have made something at the new name in the
// upper, where it would hide what moved: that was before, and is replaced as by any
// rename; or brought up what moved, if our claim was broken: then that moves, too.
func (fs *FS) renamedBelow(m *move, p *part, dir *dirFD, claims claimed) error {
	switch {
	case claims == nil:
		return nil
	case m.exchange():
		return fs.exchangedBelow(m, p, dir, claims)
	}
	o, whole := p.origin(), claims.whole()
	err := fs.inUpperAt(m.to, func(dirfd int, stx *unix.Statx_t) error {
		origin, err := copyup.ReadOrigin(dirfd, m.to.name)
		switch {
		case err != nil || origin == o:
			return err // brought up from its new name
		case whole, origin != "" && claims[origin] != nil:
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
	if whole && claims.whole() {
		return nil
	}
	return fs.follow(m, o)
}

// renamedAbove is called after a rename in the upper. If a claim was broken, another host may
// have moved something to the new name in a lower, which what came there hides, or merges
// with: then it goes back, unless it has replaced something above.
func (fs *FS) renamedAbove(m *move, from, to *dirFD, targets []part, claims claimed) error {
	if claims.whole() {
		return nil
	}
	ends := []dentry{m.to}
	flags := uint(unix.RENAME_NOREPLACE)
	if m.exchange() {
		ends, flags, targets = append(ends, m.from), unix.RENAME_EXCHANGE, nil
	} else if len(targets) > 0 && targets[0].layer == fs.upper {
		return nil
	}
	for _, d := range ends {
		origins, err := fs.originsAt(d)
		if err == nil && !slices.ContainsFunc(origins, func(o copyup.Origin) bool {
			return !slices.ContainsFunc(targets, func(p part) bool { return p.origin() == o })
		}) {
			continue
		}
		if uerr := sys.Rename(to.fd, m.to.name, from.fd, m.from.name, flags); uerr != nil {
			fs.log.Warn("a rename onto what another host has moved cannot be taken back", "name", m.to.name, "cause", uerr)
			return nil
		}
		return cmp.Or(err, errChanged)
	}
	return nil
}

// exchangedBelow is renamedBelow for an exchange. What was brought up of either, from the
// name that it had, would hide the other, or merge with it: then both go back.
func (fs *FS) exchangedBelow(m *move, p *part, dir *dirFD, claims claimed) error {
	if claims.whole() {
		return nil
	}
	up := func(int, *unix.Statx_t) error { return errChanged }
	err := fs.inUpperAt(m.from, up)
	if err == nil {
		err = fs.inUpperAt(m.to, up)
	}
	if err != nil {
		if uerr := sys.Rename(dir.fd, m.to.name, p.d.fd, m.from.name, unix.RENAME_EXCHANGE); uerr != nil {
			fs.log.Warn("an exchange in a lower cannot be taken back", "name", m.from.name, "other", m.to.name, "cause", uerr)
		}
	}
	return err
}

// renameByLink renames the file p in a lower, to the directory dir there, to a name that
// is free in the upper, too (RENAME_NOREPLACE). That can only be told once it has the new
// name, and until then it keeps the old one: if it had to be given back, a third host
// could have made another file of that name. done is false where files have one name.
func (fs *FS) renameByLink(m *move, p *part, dir *dirFD, claims claimed) (done bool, err error) {
	fd, err := openIdentified(p.d.fd, m.from.name, idOf(&p.attr))
	if err != nil {
		return true, errChanged
	}
	defer unix.Close(fd)
	switch err := sys.LinkFd(fd, dir.fd, m.to.name); err {
	case nil:
	case unix.EEXIST, unix.ENOENT:
		return true, errChanged
	case unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS, unix.EMLINK, unix.EXDEV:
		return false, nil
	default:
		return true, err
	}
	o := p.origin()
	_ = claims.whole()
	err = fs.inUpperAt(m.to, func(dirfd int, _ *unix.Statx_t) error {
		if origin, err := copyup.ReadOrigin(dirfd, m.to.name); err == nil && origin == o && !claims.whole() {
			return nil // brought up from its new name
		}
		return unix.EEXIST
	})
	if err == nil {
		err = unlinkIf(p.d.fd, m.from.name, fd)
	}
	if err != nil {
		if uerr := unlinkIf(dir.fd, m.to.name, fd); uerr != nil {
			fs.log.Warn("a file in a lower has two names after a rename that failed", "name", m.to.name, "cause", uerr)
		}
		return true, err
	}
	if claims.whole() {
		return true, nil
	}
	return true, fs.follow(m, o)
}

// unlinkIf removes name from dir in a lower if it is the file fd.
func unlinkIf(dir int, name string, fd int) error {
	if is, err := idAt(dir, name); err != nil || !is.is(idOfFd(fd)) {
		return ignoreGone(err)
	}
	return ignoreGone(sys.Unlink(dir, name))
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
	_, err := fs.removeIf(dirfd, m.to.name, idOf(ptr(local.AttrOf(stx))))
	return err
}

// follow moves what another host brought up from the old name meanwhile.
func (fs *FS) follow(m *move, o copyup.Origin) error {
	if !fs.succeededAt(m.from, o) || !fs.notice(m.to.parent) {
		return nil
	}
	from, to, release, err := fs.upperEnds(m)
	if err != nil {
		return err
	}
	defer release()
	err = sys.Rename(from.fd, m.from.name, to.fd, m.to.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
