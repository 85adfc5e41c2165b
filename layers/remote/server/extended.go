package server

import (
	"os/user"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// offered are OpenSSH's extensions that we have as well.
var offered = []struct{ name, version string }{
	{"posix-rename@openssh.com", "1"},
	{"statvfs@openssh.com", "2"},
	{"fstatvfs@openssh.com", "2"},
	{"hardlink@openssh.com", "1"},
	{"fsync@openssh.com", "1"},
	{"lsetstat@openssh.com", "1"},
	{"limits@openssh.com", "1"},
	{"expand-path@openssh.com", "1"},
	{"home-directory", "1"},
	{"users-groups-by-id@openssh.com", "1"},
}

// extended serves EXTENDED.
func (s *server) extended(q *request) error {
	name := q.Str()
	f := s.extension(name)
	if f == nil {
		return errUnsupported
	}
	return f(s, q)
}

func (s *server) extension(name string) handler {
	switch name {
	case "posix-rename@openssh.com":
		return (*server).posixRename
	case "statvfs@openssh.com":
		return (*server).statvfs
	case "fstatvfs@openssh.com":
		return (*server).fstatvfs
	case "hardlink@openssh.com":
		return (*server).hardlink
	case "fsync@openssh.com":
		return (*server).fsync
	case "lsetstat@openssh.com":
		return func(s *server, q *request) error { return s.setstat(q, false) }
	case "limits@openssh.com":
		return (*server).limits
	case "expand-path@openssh.com":
		return (*server).expandPath
	case "home-directory":
		return (*server).homeDirectory
	case "users-groups-by-id@openssh.com":
		return (*server).usersGroups
	case extension.Attrs:
		return (*server).wholeAttrs
	case extension.Xattrs:
		return (*server).xattrs
	case extension.Extents:
		return (*server).extents
	case extension.Get:
		return (*server).get
	case extension.Tree:
		return (*server).openTree
	case extension.Hash:
		return (*server).hash
	}
	return nil
}

// wholeAttrs serves attrs@migratefs.
func (s *server) wholeAttrs(q *request) error {
	s.full = true
	s.status(q.id, nil)
	return nil
}

func (s *server) limits(q *request) error {
	s.answer(fxpExtendedReply, q.id, func(b []byte) []byte {
		return u64(u64(u64(u64(b, maxPacket), maxData), maxData), uint64(s.handles.most))
	})
	return nil
}

func (s *server) statvfs(q *request) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	fd, err := s.tree.look(p, true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.vfs(q, fd)
}

func (s *server) fstatvfs(q *request) error {
	h, _, err := s.handles.get(q.Bytes())
	if err != nil {
		return err
	}
	if h.walk != nil {
		return unix.EBADF
	}
	return s.vfs(q, h.fd)
}

func (s *server) vfs(q *request, fd int) error {
	st, err := local.StatfsFd(fd)
	if err != nil {
		return err
	}
	var raw unix.Statfs_t
	if err := unix.Fstatfs(fd, &raw); err != nil {
		return err
	}
	flag := uint64(raw.Flags) & (unix.ST_RDONLY | unix.ST_NOSUID) // 1 and 2, as the extension has them
	frsize := st.Frsize
	if frsize == 0 {
		frsize = st.Bsize
	}
	var a layers.Attr
	if s.full {
		if a, err = s.attrOf(fd, ""); err != nil {
			return err
		}
	}
	s.answer(fxpExtendedReply, q.id, func(b []byte) []byte {
		for _, v := range []uint64{
			uint64(st.Bsize), uint64(frsize), st.Blocks, st.Bfree, st.Bavail,
			st.Files, st.Ffree, st.Ffree, st.Fsid, flag, uint64(st.NameLen),
		} {
			b = u64(b, v)
		}
		if s.full {
			b = extension.AppendTime(u64(b, a.Ino), a.Btime)
		}
		return b
	})
	return nil
}

func (s *server) fsync(q *request) error {
	name := q.Bytes()
	if err := s.mayChange(q, "fsync", ""); err != nil {
		return err
	}
	h, err := s.handles.file(name)
	if err != nil {
		return err
	}
	return s.done(q, "fsync", h.path, sys.Fsync(h.fd))
}

// expandPath makes an absolute path of one that begins with ~ or ~user.
func (s *server) expandPath(q *request) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(p, "~"); ok {
		who, rest, _ := strings.Cut(rest, "/")
		home, err := s.home(who)
		if err != nil {
			return err
		}
		p = path.Join(home, rest)
	}
	if p == "" || p[0] != '/' {
		p = path.Join(s.tree.start, p)
	}
	s.name(q.id, p)
	return nil
}

func (s *server) homeDirectory(q *request) error {
	who, err := q.path()
	if err != nil {
		return err
	}
	home, err := s.home(who)
	if err != nil {
		return err
	}
	s.name(q.id, home)
	return nil
}

// home is the home directory of a user, "" being our own. What is confined is at
// home where it begins.
func (s *server) home(who string) (string, error) {
	if s.tree.confined {
		return s.tree.start, nil
	}
	u, err := user.Current()
	if who != "" {
		u, err = user.Lookup(who)
	}
	if err != nil || u.HomeDir == "" {
		return "", unix.ENOENT
	}
	return u.HomeDir, nil
}
