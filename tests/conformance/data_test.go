package conformance

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "fallocate", tree: big("f", 16), run: fallocate},
		testcase{name: "sparse", tree: sparse, beyondSFTP: true, run: seekHoles},
		testcase{name: "far-offsets", run: farOffsets},
		testcase{name: "copy-range", tree: copyRangeTree, run: copyRange},
		testcase{name: "append", tree: files("f"), run: appendAll},
		testcase{name: "direct", tree: big("f", 4), run: direct},
		testcase{name: "sync-flags", tree: files("f", "g"), run: syncFlags},
		testcase{name: "open-flags", tree: openTree, run: openFlags},
		testcase{name: "refused-truncate", tree: files("f", "d/g"), beyondSFTP: true, run: refusedTruncate},
		testcase{name: "mmap", tree: big("f", 4), run: mmap},
		testcase{name: "mmap-private", tree: big("f", 4), run: mmapPrivate},
		testcase{name: "old-descriptor", tree: big("f", 4), run: oldDescriptor},
		testcase{name: "unlinked-open", tree: files("f", "g", "d/h"), run: unlinkedOpen},
		testcase{name: "vectors", tree: files("f"), run: vectors},
		testcase{name: "truncate", tree: big("f", 4), run: truncates},
	)
}

// big is a file of some blocks of 4 KiB, each filled with a letter.
func big(name string, blocks int) func(*testing.T, string) {
	return func(t *testing.T, dir string) { put(t, filepath.Join(dir, name), letters(blocks)) }
}

func letters(blocks int) string {
	var b strings.Builder
	for i := range blocks {
		b.WriteString(strings.Repeat(string(rune('a'+i)), 4096))
	}
	return b.String()
}

// sum says what a file holds in a word.
func (c *at) sum(name string) string {
	c.Helper()
	f, err := os.Open(c.path(name))
	c.must(err)
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	c.must(err)
	return fmt.Sprintf("%d bytes %x", n, h.Sum(nil)[:6])
}

func fallocate(c *at) {
	fd := c.open("f", unix.O_RDWR)
	for _, m := range []struct {
		name string
		mode uint32
		off  int64
		n    int64
	}{
		{"punch", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 4096, 8192},
		{"punch without keep", unix.FALLOC_FL_PUNCH_HOLE, 0, 4096},
		{"punch a part of a block", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 20000, 100},
		{"zero", unix.FALLOC_FL_ZERO_RANGE, 30000, 5000},
		{"zero beyond the end", unix.FALLOC_FL_ZERO_RANGE, 65000, 5000},
		{"zero beyond the end, size kept", unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 75000, 5000},
		{"grow", 0, 70000, 30000},
		{"keep size", unix.FALLOC_FL_KEEP_SIZE, 100000, 50000},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 4096, 4096},
		{"insert", unix.FALLOC_FL_INSERT_RANGE, 4096, 4096},
		{"unshare", unix.FALLOC_FL_UNSHARE_RANGE, 0, 4096},
		{"no such mode", 0x80, 0, 4096},
		{"negative", 0, -1, 10},
		{"of nothing", 0, 0, 0},
		{"too far", 0, 1 << 62, 1 << 62},
	} {
		err := unix.Fallocate(fd, m.mode, m.off, m.n)
		c.note(m.name, "%s, %s", errName(err), c.sum("f"))
	}
	c.err("on a read-only descriptor", unix.Fallocate(c.open("f", unix.O_RDONLY), 0, 0, 10))
	c.err("on a directory", unix.Fallocate(c.open(".", unix.O_RDONLY), 0, 0, 10))
}

// holes lists where data begins and ends.
func (c *at) holes(fd int) string {
	c.Helper()
	var b strings.Builder
	for off := int64(0); ; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err != nil {
			fmt.Fprintf(&b, "%s", errName(err))
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		c.must(err)
		fmt.Fprintf(&b, "%d-%d ", data, hole)
		off = hole
	}
	return b.String()
}

func sparse(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<40))
	for _, off := range []int64{1 << 20, 5 << 30, 1<<40 - 4096} {
		_, err = f.WriteAt([]byte(letters(1)), off)
		must(t, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "hole"), nil, 0o644))
	must(t, os.Truncate(filepath.Join(dir, "hole"), 10<<30))
	must(t, f.Sync())
}

// A file with holes comes up with them.
func seekHoles(c *at) {
	fd := c.open("f", unix.O_RDWR)
	c.note("at first", "%s", c.holes(fd))
	_, err := unix.Pwrite(fd, []byte("x"), 2<<30)
	c.must(err)
	c.note("after a write", "%s", c.holes(fd))
	c.note("by another descriptor", "%s", c.holes(c.open("f", unix.O_RDONLY)))
	st := c.lstat("f")
	c.note("size and space", "%d %v", st.Size, st.Blocks < 1000)
	hole := c.open("hole", unix.O_RDWR)
	c.note("a hole", "%s", c.holes(hole))
	_, err = unix.Pwrite(hole, []byte("x"), 8<<30)
	c.must(err)
	c.note("not whole any more", "%s", c.holes(hole))
	for _, off := range []int64{-1, 1 << 40, 1<<63 - 1} {
		_, err = unix.Seek(fd, off, unix.SEEK_DATA)
		c.err("SEEK_DATA", err)
		_, err = unix.Seek(fd, off, unix.SEEK_HOLE)
		c.err("SEEK_HOLE", err)
	}
	b := make([]byte, 6)
	_, err = unix.Pread(fd, b, 5<<30-3)
	c.note("at the edge", "%q %s", b, errName(err))
}

func farOffsets(c *at) {
	fd := c.open("new", unix.O_RDWR|unix.O_CREAT)
	const last = 16<<40 - 4096 - 1 // of ext4
	for _, off := range []int64{4<<30 - 1, 4 << 30, 5<<40 + 7, last - 1, last, last + 1, 1<<63 - 2, 1<<63 - 1} {
		n, err := unix.Pwrite(fd, []byte("ab"), off)
		c.note(fmt.Sprintf("write at %d", off), "%d %s", n, errName(err))
		b := make([]byte, 2)
		n, err = unix.Pread(fd, b, off)
		c.note(fmt.Sprintf("read at %d", off), "%d %s %q", max(n, 0), errName(err), b)
	}
	c.note("size", "%d", c.lstat("new").Size)
	for _, size := range []int64{1 << 50, 1<<63 - 1, -1, 8 << 30} {
		c.err(fmt.Sprintf("truncate to %d", size), unix.Ftruncate(fd, size))
	}
	c.note("size in the end", "%d", c.lstat("new").Size)
}

func copyRangeTree(t *testing.T, dir string) {
	big("f", 8)(t, dir)
	files("g", "h")(t, dir)
}

func copyRange(c *at) {
	put(c, c.path("new"), "0123456789")
	copyTo := func(label, from string, fromOff int64, to string, toOff int64, n int) {
		in, out := c.open(from, unix.O_RDONLY), c.open(to, unix.O_RDWR)
		done := 0
		for done < n {
			m, err := unix.CopyFileRange(in, &fromOff, out, &toOff, n-done, 0)
			if err != nil {
				c.err(label+": error", err)
				break
			}
			if m == 0 {
				break
			}
			done += m
		}
		c.note(label, "%d, %s", done, c.sum(to))
	}
	copyTo("lower to lower", "f", 100, "g", 3, 10000)
	copyTo("lower to upper", "f", 0, "new", 5, 20000)
	copyTo("upper to lower", "new", 2, "h", 0, 7)
	copyTo("beyond the end", "f", 30000, "h", 100, 100000)
	copyTo("within a file", "f", 0, "f", 16384, 4096)
	copyTo("overlapping", "f", 0, "f", 10, 4096)
	in := c.open("f", unix.O_RDONLY)
	_, err := unix.CopyFileRange(in, nil, in, nil, 10, 0)
	c.err("to a read-only descriptor", err)
	_, err = unix.CopyFileRange(in, nil, c.open("new", unix.O_WRONLY|unix.O_APPEND), nil, 10, 0)
	c.err("to an appending descriptor", err)
	c.note("f", "%s", c.sum("f"))
}

// Several writers append whole lines.
func appendAll(c *at) {
	const writers, lines = 4, 100
	var all sync.WaitGroup
	for i := range writers {
		fd := c.open("f", unix.O_WRONLY|unix.O_APPEND)
		all.Go(func() {
			for n := range lines {
				_, _ = unix.Write(fd, []byte(fmt.Sprintf("\n%d of %d, %s", n, i, strings.Repeat("x", n))))
			}
		})
	}
	all.Wait()
	got := strings.Split(c.content("f"), "\n")
	c.note("first", "%s", got[0])
	c.note("lines", "%d", len(got))
	seen := map[string]bool{}
	for _, l := range got[1:] {
		seen[l] = true
	}
	c.note("different ones", "%d", len(seen))
	next := make([]int, writers)
	inOrder := true
	for _, l := range got[1:] {
		var n, i int
		_, err := fmt.Sscanf(l, "%d of %d,", &n, &i)
		inOrder = inOrder && err == nil && n == next[i]
		next[i]++
	}
	c.note("in order", "%v", inOrder)
	fd := c.open("f", unix.O_RDWR|unix.O_APPEND)
	_, err := unix.Pwrite(fd, []byte("END"), 0) // appends, says pwrite(2)
	c.err("pwrite", err)
	s := c.content("f")
	c.note("ends in", "%s %s", s[:7], s[len(s)-3:])
}

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	off := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[off : off+n]
}

func direct(c *at) {
	fd := c.open("f", unix.O_RDWR|unix.O_DIRECT)
	b := aligned(8192)
	n, err := unix.Pread(fd, b, 4096)
	c.note("read", "%d %s %c%c", n, errName(err), b[0], b[8191])
	copy(b, strings.Repeat("Z", 4096))
	n, err = unix.Pwrite(fd, b[:4096], 8192)
	c.note("write", "%d %s %s", n, errName(err), c.sum("f"))
	n, err = unix.Pread(fd, b, 12288)
	c.note("read at the end", "%d %s", n, errName(err))
	n, err = unix.Pwrite(fd, b[:4096], 16384)
	c.note("append a block", "%d %s %s", n, errName(err), c.sum("f"))
	buffered := c.open("f", unix.O_RDWR)
	_, err = unix.Pwrite(buffered, []byte("buffered"), 0)
	c.must(err)
	_, err = unix.Pread(fd, b[:4096], 0)
	c.note("sees what was written", "%s %.8s", errName(err), b)
	_, err = unix.Pwrite(fd, []byte(strings.Repeat("D", 4096))[:0], 0)
	c.err("write nothing", err)
	copy(b, strings.Repeat("Y", 4096))
	_, err = unix.Pwrite(fd, b[:4096], 0)
	c.must(err)
	small := make([]byte, 5)
	_, err = unix.Pread(buffered, small, 0)
	c.note("is seen", "%s %s", errName(err), small)
	n, err = unix.Pread(fd, b[1:101], 5)
	c.note("unaligned", "%d %s", n, errName(err))
}

func syncFlags(c *at) {
	for _, flags := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_SYNC | unix.O_APPEND} {
		fd := c.open("f", unix.O_RDWR|flags)
		_, err := unix.Write(fd, []byte("SYNC"))
		c.note(fmt.Sprintf("%x", flags), "%s %s", errName(err), c.content("f"))
		got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		c.note("flags", "%x %s", got&(unix.O_SYNC|unix.O_APPEND), errName(err))
	}
	fd := c.open("g", unix.O_RDWR)
	for i, f := range []func(int) error{unix.Fsync, unix.Fdatasync, unix.Syncfs,
		func(fd int) error { return unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }} {
		_, err := unix.Pwrite(fd, []byte("more"), int64(i))
		c.must(err)
		c.err("sync", f(fd))
		c.err("sync of a reader", f(c.open("g", unix.O_RDONLY)))
	}
	dir := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	c.err("fsync of a directory", unix.Fsync(dir))
	c.err("fdatasync of a directory", unix.Fdatasync(dir))
	c.err("syncfs of a directory", unix.Syncfs(dir))
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND)
	c.err("O_APPEND later", err)
	_, err = unix.Pwrite(fd, []byte("END"), 0)
	c.note("g", "%s %s", errName(err), c.content("g"))
}

func openTree(t *testing.T, dir string) {
	files("f", "d/g")(t, dir)
	must(t, os.Symlink("f", filepath.Join(dir, "link")))
	must(t, os.Symlink("nothing", filepath.Join(dir, "dangling")))
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	must(t, os.Symlink("d", filepath.Join(dir, "dirlink")))
}

func openFlags(c *at) {
	for _, o := range []struct {
		name  string
		flags int
	}{
		{"f", unix.O_RDONLY | unix.O_NOFOLLOW}, {"link", unix.O_RDONLY | unix.O_NOFOLLOW}, {"link", unix.O_RDONLY},
		{"f", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL}, {"link", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL},
		{"dangling", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL}, {"dangling", unix.O_RDONLY}, {"loop", unix.O_RDONLY},
		{"f", unix.O_RDONLY | unix.O_DIRECTORY}, {"d", unix.O_WRONLY}, {"d", unix.O_RDONLY | unix.O_CREAT}, {"d", unix.O_RDONLY | unix.O_DIRECTORY},
		{"dirlink", unix.O_RDONLY | unix.O_DIRECTORY}, {"dirlink", unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW},
		{"f/x", unix.O_RDONLY}, {"d/none", unix.O_RDONLY}, {"none/f", unix.O_RDONLY}, {"none/f", unix.O_WRONLY | unix.O_CREAT},
		{"link", unix.O_PATH | unix.O_NOFOLLOW}, {"f", unix.O_PATH}, {"new", unix.O_RDONLY | unix.O_CREAT | unix.O_EXCL},
		{"new", unix.O_RDONLY | unix.O_CREAT | unix.O_EXCL}, {"new", unix.O_WRONLY | unix.O_CREAT}, {"new2/", unix.O_WRONLY | unix.O_CREAT},
		{"f", unix.O_RDONLY | unix.O_TRUNC | unix.O_DIRECTORY},
	} {
		c.err(fmt.Sprintf("open %s %x", o.name, o.flags), tryOpen(c.dir+"/"+o.name, o.flags))
	}
	c.note("f", "%s", c.content("f"))
	c.err("through a dangling link", tryOpen(c.path("dangling"), unix.O_WRONLY|unix.O_CREAT))
	c.note("made", "%d", c.lstat("nothing").Size)

	p := c.open("f", unix.O_PATH)
	_, err := unix.Read(p, make([]byte, 1))
	c.err("read of O_PATH", err)
	st := c.fstat(p)
	c.note("stat of O_PATH", "%d %v", st.Size, st.Ino == c.lstat("f").Ino)
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p), unix.O_RDWR, 0)
	c.must(err)
	_, err = unix.Pwrite(fd, []byte("CONTENT"), 0)
	unix.Close(fd)
	c.note("opened again, written", "%s %s", errName(err), c.content("f"))
	link := c.open("link", unix.O_PATH|unix.O_NOFOLLOW)
	b := make([]byte, 10)
	n, err := unix.Readlinkat(link, "", b)
	c.note("readlink of O_PATH", "%s %s", errName(err), b[:max(n, 0)])
	c.err("fchownat of O_PATH", unix.Fchownat(p, "", -1, 7, unix.AT_EMPTY_PATH))
	c.note("gid", "%d", c.lstat("f").Gid)
}

func (c *at) fstat(fd int) (st unix.Stat_t) {
	c.Helper()
	c.must(unix.Fstat(fd, &st))
	return st
}

// An open that is refused has not truncated anything.
func refusedTruncate(c *at) {
	c.must(unix.Chmod(c.path("d"), 0o700))
	c.as(1000, func() {
		c.err("write only", tryOpen(c.path("f"), unix.O_WRONLY|unix.O_TRUNC))
		c.err("read only", tryOpen(c.path("f"), unix.O_RDONLY|unix.O_TRUNC))
		c.err("truncate", unix.Truncate(c.path("f"), 0))
		c.err("in a closed directory", tryOpen(c.path("d/g"), unix.O_WRONLY|unix.O_TRUNC))
		c.err("create over it", tryOpen(c.path("f"), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC))
	})
	c.err("exclusive", tryOpen(c.path("f"), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_TRUNC))
	c.note("f", "%s", c.content("f"))
	c.note("g", "%s", c.content("d/g"))
}

func (c *at) mmap(fd, n, prot, flags int) []byte {
	c.Helper()
	m, err := unix.Mmap(fd, 0, n, prot, flags)
	c.must(err)
	c.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

// What is written in any way is seen in every other, through descriptors and
// mappings of before and after the copy-up.
func mmap(c *at) {
	reader := c.open("f", unix.O_RDONLY)
	old := c.mmap(reader, 16384, unix.PROT_READ, unix.MAP_SHARED)
	c.note("before", "%c%c", old[0], old[16383])
	rw := c.open("f", unix.O_RDWR)
	m := c.mmap(rw, 16384, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	seen := func(label string, off int) {
		b := make([]byte, 4)
		_, err := unix.Pread(reader, b, int64(off))
		c.must(err)
		late := c.open("f", unix.O_RDONLY)
		l := make([]byte, 4)
		_, err = unix.Pread(late, l, int64(off))
		c.must(err)
		c.note(label, "read %s, mapped %s, mapped before %s, opened late %s", b, m[off:off+4], old[off:off+4], l)
	}
	_, err := unix.Pwrite(rw, []byte("PWRT"), 0)
	c.must(err)
	seen("pwrite", 0)
	copy(m[4096:], "STOR")
	seen("store", 4096)
	c.must(unix.Msync(m, unix.MS_SYNC))
	seen("msync", 4096)
	c.must(os.WriteFile(c.path("x"), nil, 0o644))
	w := c.open("f", unix.O_WRONLY)
	_, err = unix.Pwrite(w, []byte("OTHR"), 8192)
	c.must(err)
	seen("write only descriptor", 8192)
	copy(m[12288:], "LAST")
	c.must(unix.Fsync(rw))
	c.note("file", "%s", c.sum("f"))
	c.must(unix.Ftruncate(rw, 6000))
	c.must(unix.Ftruncate(rw, 16384))
	seen("cut and grown", 4096)
	c.note("zeros", "%v", bytes.Equal(m[6000:8192], make([]byte, 2192)))
	c.note("file in the end", "%s", c.sum("f"))
	_, err = unix.Mmap(reader, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.err("writable mapping of a reader", err)
	_, err = unix.Mmap(w, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	c.err("mapping of a writer", err)
}

func mmapPrivate(c *at) {
	fd := c.open("f", unix.O_RDONLY)
	m := c.mmap(fd, 16384, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	copy(m, "PRIVATE")
	c.note("file", "%s", c.sum("f"))
	w := c.open("f", unix.O_RDWR)
	_, err := unix.Pwrite(w, []byte("WRITTEN"), 0)
	c.must(err)
	_, err = unix.Pwrite(w, []byte("WRITTEN"), 8192)
	c.must(err)
	c.note("mapping", "%.7s %.7s", m, m[8192:])
	c.note("file in the end", "%s", c.sum("f"))
}

// A descriptor that was opened before the copy-up is one of the file as it is.
func oldDescriptor(c *at) {
	old := c.open("f", unix.O_RDONLY)
	path := c.open("f", unix.O_PATH)
	ino := c.fstat(old).Ino
	b := make([]byte, 3)
	_, err := unix.Read(old, b)
	c.must(err)
	w := c.open("f", unix.O_WRONLY)
	_, err = unix.Pwrite(w, []byte("NEW"), 3)
	c.must(err)
	_, err = unix.Read(old, b)
	c.note("read on", "%s %s", b, errName(err))
	c.must(unix.Ftruncate(w, 5))
	st := c.fstat(old)
	c.note("size", "%d, same file %v %v", st.Size, st.Ino == ino, c.lstat("f").Ino == ino)
	c.must(unix.Fchmod(old, 0o600))
	c.note("mode", "%o %o", c.lstat("f").Mode, c.fstat(path).Mode)
	c.must(unix.Fchown(old, -1, 3))
	c.note("gid", "%d", c.fstat(w).Gid)
	c.must(os.Rename(c.path("f"), c.path("moved")))
	_, err = unix.Pwrite(w, []byte("END"), 5)
	c.must(err)
	n, err := unix.Pread(old, make([]byte, 100), 0)
	c.note("after the rename", "%d %s, same file %v", n, errName(err), c.lstat("moved").Ino == ino)
}

func unlinkedOpen(c *at) {
	for _, name := range []string{"f", "g"} {
		flags := unix.O_RDWR
		if name == "g" {
			flags = unix.O_RDONLY
		}
		fd := c.open(name, flags)
		path := c.open(name, unix.O_PATH)
		ino := c.fstat(fd).Ino
		c.must(unix.Unlink(c.path(name)))
		st := c.fstat(fd)
		c.note(name, "links %d, size %d, same %v, name %s", st.Nlink, st.Size, st.Ino == ino, errName(tryOpen(c.path(name), 0)))
		b := make([]byte, 20)
		n, err := unix.Pread(fd, b, 0)
		c.note(name+" read", "%s %s", b[:max(n, 0)], errName(err))
		c.err(name+" fchmod", unix.Fchmod(fd, 0o640))
		c.err(name+" futimes", unix.UtimesNanoAt(path, "", []unix.Timespec{{Sec: 5}, {Sec: 6}}, unix.AT_EMPTY_PATH))
		st = c.fstat(fd)
		c.note(name+" mode and time", "%o %d %d", st.Mode, st.Mtim.Sec, c.fstat(path).Mtim.Sec)
		if flags == unix.O_RDWR {
			_, err = unix.Pwrite(fd, []byte("WRITTEN"), 0)
			c.err(name+" write", err)
			c.err(name+" ftruncate", unix.Ftruncate(fd, 9))
			c.err(name+" fsync", unix.Fsync(fd))
		}
		again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
		c.err(name+" opened again", err)
		if err == nil {
			n, err = unix.Read(again, b)
			c.note(name+" read again", "%s %s", b[:max(n, 0)], errName(err))
			unix.Close(again)
		}
		c.err(name+" linked again", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, c.path("new"), unix.AT_SYMLINK_FOLLOW))
		put(c, c.path(name), "another "+name)
		n, err = unix.Pread(fd, b, 0)
		c.note(name+" beside another", "%s %s, other inode %v", b[:max(n, 0)], errName(err), c.lstat(name).Ino != ino)
	}
	h := c.open("d/h", unix.O_RDONLY)
	dir := c.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	c.must(os.RemoveAll(c.path("d")))
	c.note("directory", "links %d, %s", c.fstat(dir).Nlink, errName(unix.Mkdirat(dir, "x", 0o755)))
	n, err := unix.ReadDirent(dir, make([]byte, 1000))
	c.note("listing", "%d %s", n, errName(err))
	b := make([]byte, 20)
	n, err = unix.Pread(h, b, 0)
	c.note("file of it", "%s %s", b[:max(n, 0)], errName(err))
}

func vectors(c *at) {
	fd := c.open("f", unix.O_RDWR)
	n, err := unix.Pwritev(fd, [][]byte{[]byte("ab"), []byte("cde"), {}, []byte("f")}, 3)
	c.note("pwritev", "%d %s %s", n, errName(err), c.content("f"))
	a, b := make([]byte, 4), make([]byte, 100)
	n, err = unix.Preadv(fd, [][]byte{a, b}, 1)
	c.note("preadv", "%d %s %s", n, errName(err), a)
	n, err = unix.Pwritev2(fd, [][]byte{[]byte("END")}, -1, 0x10) // RWF_APPEND
	c.note("RWF_APPEND", "%d %s %s", n, errName(err), c.content("f"))
	n, err = unix.Pwritev2(fd, [][]byte{[]byte("S")}, 0, 0x4) // RWF_SYNC
	c.note("RWF_SYNC", "%d %s", n, errName(err))
	_, err = unix.Pwrite(fd, []byte("x"), -1)
	c.err("negative offset", err)
	pos, err := unix.Seek(fd, -3, unix.SEEK_END)
	c.note("SEEK_END", "%d %s", pos, errName(err))
	_, err = unix.Seek(fd, -3, unix.SEEK_SET)
	c.err("before the beginning", err)
	var p [2]int
	c.must(unix.Pipe(p[:]))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	zero := int64(0)
	m, err := unix.Splice(fd, &zero, p[1], nil, 10, 0)
	c.note("splice out", "%d %s", m, errName(err))
	m, err = unix.Splice(p[0], nil, fd, ptr(int64(2)), 10, 0)
	c.note("splice in", "%d %s %s", m, errName(err), c.content("f"))
	out := c.open("new", unix.O_WRONLY|unix.O_CREAT)
	k, err := unix.Sendfile(out, fd, ptr(int64(1)), 8)
	c.note("sendfile", "%d %s %s", k, errName(err), c.content("new"))
}

func ptr[T any](v T) *T { return &v }

func truncates(c *at) {
	for _, size := range []int64{10000, 5, 0, 4096, 20000} {
		err := unix.Truncate(c.path("f"), size)
		st := c.lstat("f")
		c.note(fmt.Sprintf("to %d", size), "%s, %d, %s", errName(err), st.Size, c.sum("f"))
	}
	fd := c.open("f", unix.O_RDONLY)
	c.err("of a reader", unix.Ftruncate(fd, 0))
	c.err("of a directory", unix.Truncate(c.path(), 0))
	c.err("negative", unix.Truncate(c.path("f"), -1))
}
