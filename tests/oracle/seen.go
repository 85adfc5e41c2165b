package oracle

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// describe shows what of a stat must be the same everywhere. Times that nobody
// set are "now": all that is set lies before 2010.
func describe(st *unix.Stat_t) string {
	d := fmt.Sprintf("%#o %d:%d", st.Mode, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		d += fmt.Sprintf(" nlink=%d size=%d", st.Nlink, st.Size)
	}
	if st.Mtim.Sec < 1262304000 {
		return d + fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return d + " mtime=now"
}

// stat also tells which open files it is: st_ino identifies them.
func (s *side) stat(o op) string {
	var st unix.Stat_t
	if err := unix.Lstat(s.at(o.path), &st); err != nil {
		return result(err, "")
	}
	d := describe(&st)
	for i, h := range s.open {
		if h != nil && h.ino == st.Ino {
			d += fmt.Sprintf(" is=%d", i)
		}
	}
	return d
}

func fstat(_ *side, h *opened, _ op) string {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return result(err, "")
	}
	return fmt.Sprintf("%s same=%v", describe(&st), st.Ino == h.ino)
}

func xattrs(path string) string {
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return result(err, "")
	}
	var lines []string
	for _, name := range strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 4096)
		m, err := unix.Lgetxattr(path, name, v)
		lines = append(lines, name+"="+result(err, "%q", v[:max(m, 0)]))
	}
	sort.Strings(lines)
	return strings.Join(lines, " ")
}

// readdir lists names and types.
func readdir(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return result(err, "")
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return result(err, "")
	}
	var lines []string
	for _, e := range entries {
		lines = append(lines, fmt.Sprintf("%s:%v", e.Name(), e.Type()))
	}
	sort.Strings(lines)
	return strings.Join(lines, " ")
}

// strangeNumbers names the entries of a directory whose d_ino is not their
// st_ino.
func (s *side) strangeNumbers(rel string) (strange string) {
	fd, err := unix.Open(s.at(rel), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return result(err, "")
	}
	defer unix.Close(fd)
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, b)
		if err != nil || n == 0 {
			return strange + result(err, "")
		}
		// struct linux_dirent64: ino, offset (8 bytes each), length (2), type (1), name.
		for e := b[:n]; len(e) > 0; e = e[binary.NativeEndian.Uint16(e[16:]):] {
			name := unix.ByteSliceToString(e[19:binary.NativeEndian.Uint16(e[16:])])
			var st unix.Stat_t
			if name == "." || name == ".." || unix.Lstat(filepath.Join(s.at(rel), name), &st) != nil {
				continue
			}
			if st.Ino != binary.NativeEndian.Uint64(e) {
				strange += " d_ino of " + name
			}
		}
	}
}

// whole returns all that can be seen of the tree, a line for each path.
func (s *side) whole() map[string]string {
	tree := map[string]string{}
	inos := map[uint64][]string{}
	var walk func(rel string)
	walk = func(rel string) {
		var st unix.Stat_t
		if err := unix.Lstat(s.at(rel), &st); err != nil {
			tree[rel] = result(err, "")
			return
		}
		d := describe(&st) + " " + xattrs(s.at(rel))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			d += " " + s.read(op{path: rel})
		case unix.S_IFLNK:
			d += " " + kinds["readlink"](s, op{path: rel})
		case unix.S_IFDIR:
			d += " " + readdir(s.at(rel)) + s.strangeNumbers(rel)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			inos[st.Ino] = append(inos[st.Ino], rel)
		}
		tree[rel] = d
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			entries, _ := os.ReadDir(s.at(rel))
			for _, e := range entries {
				walk(filepath.Join(rel, e.Name()))
			}
		}
	}
	walk(".")
	for _, paths := range inos {
		sort.Strings(paths)
		for _, p := range paths {
			tree[p] += fmt.Sprintf(" names=%v", paths)
		}
	}
	return tree
}

// differ returns how two trees differ, one line each.
func differ(a, b map[string]string) (diff []string) {
	for p, d := range a {
		if b[p] != d {
			diff = append(diff, fmt.Sprintf("%s:\n\t\t%s\n\t\t%s", p, d, b[p]))
		}
	}
	for p, d := range b {
		if _, ok := a[p]; !ok {
			diff = append(diff, fmt.Sprintf("%s:\n\t\t-\n\t\t%s", p, d))
		}
	}
	sort.Strings(diff)
	return diff
}
