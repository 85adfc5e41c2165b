package testbed

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Tree is a snapshot of a directory tree: of every file, one line for each of
// its aspects. Two trees that are the same in all that was asked for are equal,
// however they are stored.
type Tree struct {
	files map[string][]string // relative path -> "aspect: value"
}

// Aspect is something of a file that a snapshot may hold besides what it always
// holds: type, mode, owner, and by type size and content, target, device.
type Aspect uint

// The aspects.
const (
	Xattrs       Aspect = 1 << iota // extended attributes, ACLs and capabilities included; not trusted.*
	Links                           // which names of the tree are the same file, and their number
	Mtime                           // to the nanosecond
	MtimeSeconds                    // to the second, which is all SFTP has
	Holes                           // which 4 KiB blocks hold data
	Numbers                         // st_ino

	// Usual is what a copy that keeps everything keeps on any filesystem.
	Usual = Xattrs | Links
)

// Snapshot reads the tree at root, all of its contents included. Names in skip
// are left out, with what is below them: slash-separated paths below root.
func Snapshot(tb testing.TB, root string, aspects Aspect, skip ...string) *Tree {
	tb.Helper()
	t := &Tree{files: map[string][]string{}}
	names := map[[2]uint64][]string{} // (dev, ino) -> paths
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(skip, rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		lines, st, err := describe(path, aspects)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		t.files[rel] = lines
		if aspects&Links != 0 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			names[[2]uint64{st.Dev, st.Ino}] = append(names[[2]uint64{st.Dev, st.Ino}], rel)
			t.add(rel, "nlink", st.Nlink)
		}
		return nil
	})
	if err != nil {
		tb.Fatalf("snapshot of %s: %v", root, err)
	}
	for _, paths := range names {
		if len(paths) > 1 {
			sort.Strings(paths)
			for _, p := range paths {
				t.add(p, "same file", fmt.Sprintf("%q", paths))
			}
		}
	}
	return t
}

func (t *Tree) add(rel, aspect string, value any) {
	t.files[rel] = append(t.files[rel], fmt.Sprintf("%s: %v", aspect, value))
}

// Len is the number of files in the tree, its root included.
func (t *Tree) Len() int { return len(t.files) }

// Has reports whether the tree holds the path.
func (t *Tree) Has(rel string) bool { return t.files[rel] != nil }

// Diff returns how the trees differ, one line each, sorted; none if they are
// equal.
func (t *Tree) Diff(other *Tree) []string {
	var diff []string
	for rel, lines := range t.files {
		others, ok := other.files[rel]
		if !ok {
			diff = append(diff, fmt.Sprintf("%q: only in the first", rel))
			continue
		}
		for _, line := range lines {
			if !slices.Contains(others, line) {
				diff = append(diff, fmt.Sprintf("%q: first  %s", rel, line))
			}
		}
		for _, line := range others {
			if !slices.Contains(lines, line) {
				diff = append(diff, fmt.Sprintf("%q: second %s", rel, line))
			}
		}
	}
	for rel := range other.files {
		if _, ok := t.files[rel]; !ok {
			diff = append(diff, fmt.Sprintf("%q: only in the second", rel))
		}
	}
	sort.Strings(diff)
	return diff
}

// Same fails the test if the trees differ, and says how. First and second name
// them.
func Same(tb testing.TB, first string, a *Tree, second string, b *Tree) {
	tb.Helper()
	if diff := a.Diff(b); len(diff) > 0 {
		tb.Errorf("%s (first) and %s (second) differ:\n\t%s", first, second,
			strings.Join(diff[:min(len(diff), 50)], "\n\t"))
	}
}

// describe returns the lines of one file.
func describe(path string, aspects Aspect) ([]string, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, st, err
	}
	var lines []string
	add := func(aspect string, value any) { lines = append(lines, fmt.Sprintf("%s: %v", aspect, value)) }
	add("type", typeName(st.Mode))
	add("mode", fmt.Sprintf("%04o", st.Mode&0o7777))
	add("owner", fmt.Sprintf("%d:%d", st.Uid, st.Gid))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		content, err := contentOf(path)
		if err != nil {
			return nil, st, err
		}
		add("size", st.Size)
		add("content", content)
		if aspects&Holes != 0 {
			data, err := dataBlocks(path, st.Size)
			if err != nil {
				return nil, st, err
			}
			add("data", data)
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return nil, st, err
		}
		add("target", fmt.Sprintf("%q", target))
	case unix.S_IFCHR, unix.S_IFBLK:
		add("device", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	}
	if aspects&Mtime != 0 {
		add("mtime", fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec))
	}
	if aspects&MtimeSeconds != 0 {
		add("mtime", st.Mtim.Sec)
	}
	if aspects&Numbers != 0 {
		add("ino", st.Ino)
	}
	if aspects&Xattrs != 0 {
		xattrs, err := xattrsOf(path)
		if err != nil {
			return nil, st, err
		}
		lines = append(lines, xattrs...)
	}
	return lines, st, nil
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return fmt.Sprintf("%#o", mode&unix.S_IFMT)
}

// contentOf returns the content if it is short, else its length and hash. It
// reads to the end that read(2) reports, whatever stat(2) says.
func contentOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head bytes.Buffer
	hash := sha256.New()
	n, err := io.Copy(hash, io.TeeReader(io.LimitReader(f, 65), &head))
	if err != nil {
		return "", err
	}
	if n <= 64 {
		return fmt.Sprintf("%q", head.Bytes()), nil
	}
	rest, err := io.Copy(hash, f)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes, sha256 %x", n+rest, hash.Sum(nil)), nil
}

// xattrsOf returns one line for each extended attribute but trusted.*, where
// overlays keep their own notes.
func xattrsOf(path string) ([]string, error) {
	size, err := unix.Llistxattr(path, nil)
	if err == unix.ENOTSUP || size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if size, err = unix.Llistxattr(path, b); err != nil {
		return nil, err
	}
	var lines []string
	for name := range bytes.SplitSeq(bytes.TrimRight(b[:size], "\x00"), []byte{0}) {
		// An overlay asked for the size counts names that it then hides.
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.")) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, string(name), value)
		if err != nil {
			return nil, fmt.Errorf("xattr %q: %w", name, err)
		}
		lines = append(lines, fmt.Sprintf("xattr %q: %q", name, value[:n]))
	}
	return lines, nil
}

// dataBlocks returns the ranges of 4 KiB blocks that hold data, by SEEK_DATA.
func dataBlocks(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const block = 4096
	var ranges []string
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return "", err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return "", err
		}
		ranges = append(ranges, fmt.Sprintf("%d-%d", start/block, (end+block-1)/block))
		off = end
	}
	return strings.Join(ranges, " "), nil
}
