package server

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

func (s *server) readlink(q *request) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	fd, err := s.tree.look(p, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isSymlink(fd) {
		return unix.EINVAL
	}
	target, err := sys.Readlink(fd, "")
	if err != nil {
		return err
	}
	s.name(q.id, target)
	return nil
}

// inParent makes a change to a name.
func (s *server) inParent(q *request, what, p string, f func(dirfd int, name string) error) error {
	if err := s.mayChange(q, what, p); err != nil {
		return err
	}
	dir, name, err := s.tree.parent(p)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return s.done(q, what, p, f(dir, name))
}

func (s *server) remove(q *request) error { return s.inParent(q, "remove", q.Str(), sys.Unlink) }
func (s *server) rmdir(q *request) error  { return s.inParent(q, "rmdir", q.Str(), sys.Rmdir) }

func (s *server) mkdir(q *request) error {
	p := q.Str()
	c := q.changes()
	mode := uint32(0o777)
	if c.flags&attrMode != 0 {
		mode = c.mode & 0o7777
	}
	return s.inParent(q, "mkdir", p, func(dirfd int, name string) error { return sys.Mkdir(dirfd, name, mode) })
}

// symlink has its arguments in OpenSSH's order, which is not the draft's.
func (s *server) symlink(q *request) error {
	target, p := q.Str(), q.Str()
	return s.inParent(q, "symlink", p, func(dirfd int, name string) error { return sys.Symlink(target, dirfd, name) })
}

// two makes a change to two names.
func (s *server) two(q *request, what string, f func(olddir int, oldname string, newdir int, newname string) error) error {
	from, to := q.Str(), q.Str()
	return s.inParent(q, what, to, func(newdir int, newname string) error {
		olddir, oldname, err := s.tree.parent(from)
		if err != nil {
			return err
		}
		defer unix.Close(olddir)
		return f(olddir, oldname, newdir, newname)
	})
}

// rename never replaces anything: the draft says so.
func (s *server) rename(q *request) error {
	return s.two(q, "rename", func(olddir int, oldname string, newdir int, newname string) error {
		err := sys.Rename(olddir, oldname, newdir, newname, unix.RENAME_NOREPLACE)
		if err != unix.EINVAL && err != unix.ENOSYS {
			return err
		}
		// A filesystem without it: directories cannot be linked, so a look must do.
		var stx unix.Statx_t
		if err := sys.Statx(olddir, oldname, &stx); err != nil {
			return err
		}
		if stx.Mode&unix.S_IFMT == unix.S_IFDIR {
			if sys.Statx(newdir, newname, &stx) == nil {
				return unix.EEXIST
			}
			return sys.Rename(olddir, oldname, newdir, newname, 0)
		}
		if err := sys.Link(olddir, oldname, newdir, newname); err != nil {
			return err
		}
		return sys.Unlink(olddir, oldname)
	})
}

func (s *server) posixRename(q *request) error {
	return s.two(q, "rename", func(olddir int, oldname string, newdir int, newname string) error {
		return sys.Rename(olddir, oldname, newdir, newname, 0)
	})
}

func (s *server) hardlink(q *request) error { return s.two(q, "link", sys.Link) }
