package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// openTrusted opens the directory at path. A symlink on the way is followed if it belongs
// to root or to who runs this: what is brought back keeps its owner and mode, and its
// owner may be who has made the symlink, to where he may not put files himself.
func openTrusted(path string) (fd int, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return -1, err
	}
	root, err := os.Open("/")
	if err != nil {
		return -1, err
	}
	defer root.Close()
	for range 40 { // as many as the kernel follows
		fd, err := sys.OpenBeneath(int(root.Fd()), strings.TrimPrefix(path, "/"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
			return fd, err
		}
		next, err := followTrusted(path)
		if err != nil {
			return -1, err
		}
		path = next
	}
	return -1, unix.ELOOP
}

// followTrusted replaces the first symlink in path by what it leads to.
func followTrusted(path string) (string, error) {
	for end := 1; end <= len(path); end++ {
		if end < len(path) && path[end] != '/' {
			continue
		}
		link, rest := path[:end], path[end:]
		var st unix.Stat_t
		if err := unix.Lstat(link, &st); err != nil {
			return "", err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return "", fmt.Errorf("%q is a symlink of uid %d: name the directory that is meant", link, st.Uid)
		}
		to, err := os.Readlink(link)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(link), to)
		}
		return filepath.Join(to, rest), nil
	}
	return "", unix.ENOTDIR
}
