package server

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// pathMax is the longest path, without NUL.
const pathMax = unix.PathMax - 1

// below returns the client's path p as one from the root, which is not empty. What
// lies elsewhere is refused; what only turns out to is refused by the kernel.
func (t *tree) below(p string) (string, error) {
	switch {
	case strings.IndexByte(p, 0) >= 0:
		return "", unix.EINVAL
	case len(p) > pathMax:
		return "", unix.ENAMETOOLONG
	}
	if p == "" || p[0] != '/' {
		if p = t.start + "/" + p; t.start == "/" {
			p = p[1:]
		}
	}
	for _, dir := range []string{t.dir, t.given} {
		if dir == "" {
			continue
		}
		rest, ok := strings.CutPrefix(p, dir)
		if !ok || rest != "" && rest[0] != '/' && dir != "/" {
			continue
		}
		if rest = strings.TrimLeft(rest, "/"); rest == "" {
			rest = "."
		}
		return rest, nil
	}
	return "", unix.EXDEV
}

// open opens what the client calls p. Symlinks are followed unless flags has
// O_NOFOLLOW, and then those on the way.
func (t *tree) open(p string, flags int, mode uint32) (int, error) {
	rest, err := t.below(p)
	if err != nil {
		return -1, err
	}
	return sys.OpenFollowing(t.root, rest, flags, mode, t.confined)
}

// openPlain opens p, on the way to which there is no symlink.
func (t *tree) openPlain(p string, flags int) (int, error) {
	rest, err := t.below(p)
	if err != nil {
		return -1, err
	}
	return sys.OpenBeneath(t.root, rest, flags, 0)
}

// parent opens the directory that the name at the end of p is in.
func (t *tree) parent(p string) (fd int, name string, err error) {
	p = strings.TrimRight(p, "/")
	dir, name := path.Split(p)
	if name == "" || name == "." || name == ".." {
		return -1, "", unix.EINVAL
	}
	if len(name) > layers.NameMax {
		return -1, "", unix.ENAMETOOLONG
	}
	if _, err := t.below(p); err != nil {
		return -1, "", err // the root itself has no name in what is served
	}
	if b, _ := t.below(p); b == "." {
		return -1, "", unix.EXDEV
	}
	if dir == "" {
		dir = "."
	}
	fd, err = t.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, name, err
}

// look opens p to look at it, and maybe more.
func (t *tree) look(p string, follow bool) (int, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	return t.open(p, flags, 0)
}

// reopen opens the regular file behind the O_PATH descriptor fd, which was opened
// as p, with flags: nothing else is ever opened.
func (t *tree) reopen(fd int, p string, flags int) (int, error) {
	var st, now unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return -1, unix.EISDIR
	default:
		return -1, unix.EOPNOTSUPP
	}
	flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	if t.proc {
		return sys.Reopen(fd, flags)
	}
	// By name once more: nothing hangs, and if it is something else now it is let
	// go of.
	nfd, err := t.open(p, flags, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Fstat(nfd, &now); err != nil || now.Dev != st.Dev || now.Ino != st.Ino {
		unix.Close(nfd)
		return -1, unix.ESTALE
	}
	return nfd, nil
}

// reopenQuietly is reopen for reading, without a new access time where we may.
func (t *tree) reopenQuietly(fd int, p string) (int, error) {
	nfd, err := t.reopen(fd, p, unix.O_RDONLY|unix.O_NOATIME)
	if err == unix.EPERM {
		nfd, err = t.reopen(fd, p, unix.O_RDONLY)
	}
	return nfd, err
}

// real returns the path of p without symlinks. The last component need not be
// there.
func (t *tree) real(p string) (string, error) {
	rest, err := t.below(p)
	if err != nil {
		return "", err
	}
	full := t.join(rest)
	// Most paths that are asked about are real already.
	if full == path.Clean(full) {
		if fd, err := sys.OpenBeneath(t.root, rest, unix.O_PATH|unix.O_NOFOLLOW, 0); err == nil {
			isLink := isSymlink(fd)
			unix.Close(fd)
			if !isLink {
				return full, nil
			}
		}
	}
	fd, err := t.open(p, unix.O_PATH, 0)
	if err == unix.ENOENT {
		dir, name, perr := t.parent(p)
		if perr != nil {
			return "", err
		}
		defer unix.Close(dir)
		d, perr := t.pathOf(dir)
		if perr != nil {
			return "", perr
		}
		var stx unix.Statx_t
		if sys.Statx(dir, name, &stx) == nil {
			return "", err // a symlink that leads nowhere
		}
		return path.Join(d, name), nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return t.pathOf(fd)
}

// join is the path of what is rest below the root.
func (t *tree) join(rest string) string {
	switch {
	case rest == ".":
		return t.dir
	case t.dir == "/":
		return "/" + rest
	}
	return t.dir + "/" + rest
}

// pathOf returns the real path of an open file, which must lead to it.
func (t *tree) pathOf(fd int) (string, error) {
	p, err := sys.PathOf(fd)
	if err != nil {
		return "", err
	}
	rest, err := t.below(p)
	if err != nil {
		return "", err
	}
	again, err := sys.OpenBeneath(t.root, rest, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", unix.ENOENT // removed: the kernel says "(deleted)" then
	}
	defer unix.Close(again)
	var a, b unix.Stat_t
	if unix.Fstat(fd, &a) != nil || unix.Fstat(again, &b) != nil || a.Dev != b.Dev || a.Ino != b.Ino {
		return "", unix.ENOENT
	}
	return t.join(rest), nil
}

func isSymlink(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// attrOf describes name in dirfd, or the descriptor dirfd if name is empty.
func (s *server) attrOf(dirfd int, name string) (layers.Attr, error) {
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, name, &stx); err != nil {
		return layers.Attr{}, err
	}
	a := local.AttrOf(&stx)
	if s.full {
		s.judge(&a, dirfd, name)
	}
	return a, nil
}
