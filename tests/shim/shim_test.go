package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// two mounts one directory twice.
func two(t *testing.T, l Lies) (dir, a, b string, fa, fb *FS) {
	t.Helper()
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	base := testbed.TempDir(t)
	dir, a, b = filepath.Join(base, "dir"), filepath.Join(base, "a"), filepath.Join(base, "b")
	for _, d := range []string{dir, a, b} {
		must(t, os.Mkdir(d, 0o755))
	}
	return dir, a, b, Mount(t, dir, a, l), Mount(t, dir, b, l)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestHonest(t *testing.T) {
	dir, a, b, _, _ := two(t, Lies{})
	at := func(d, n string) string { return filepath.Join(d, n) }
	must(t, os.MkdirAll(at(a, "d/e"), 0o750))
	must(t, os.WriteFile(at(a, "d/f"), []byte("one\ntwo"), 0o640))
	must(t, os.Link(at(a, "d/f"), at(a, "d/g")))
	must(t, os.Symlink("d/f", at(a, "l")))
	must(t, unix.Mkfifo(at(a, "p"), 0o622))
	must(t, unix.Setxattr(at(a, "d/f"), "trusted.x", []byte("v"), 0))
	must(t, unix.Lsetxattr(at(a, "l"), "trusted.x", []byte("v"), 0))
	must(t, os.Chown(at(a, "d/g"), 1000, 1001))
	must(t, os.Rename(at(a, "d/e"), at(a, "e")))
	is(t, "rename, no replace", unix.Renameat2(unix.AT_FDCWD, at(a, "l"), unix.AT_FDCWD, at(a, "e"), unix.RENAME_NOREPLACE), unix.EEXIST)
	fd, err := unix.Open(a, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("nameless"), 0)
	must(t, err)
	must(t, unix.Linkat(fd, "", unix.AT_FDCWD, at(a, "t"), unix.AT_EMPTY_PATH))
	must(t, unix.Close(fd))
	past := time.Unix(1_000_000_000, 123_456_789)
	for _, n := range []string{"d/f", "d", "e", "t"} {
		must(t, os.Chtimes(at(a, n), past, past))
	}
	const all = testbed.Usual | testbed.Mtime
	want := testbed.Snapshot(t, dir, all)
	testbed.Same(t, "the directory", want, "one mount", testbed.Snapshot(t, a, all))
	testbed.Same(t, "the directory", want, "the other", testbed.Snapshot(t, b, all))
	var stx unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, at(a, "d/f"), 0, unix.STATX_BTIME, &stx))
	if stx.Mask&unix.STATX_BTIME == 0 {
		t.Error("no birth time")
	}
	must(t, os.RemoveAll(at(a, "d")))
	if _, err := os.Stat(at(b, "d")); err == nil {
		t.Error("what was removed is there")
	}
}

func TestLies(t *testing.T) {
	dir, a, b, fa, fb := two(t, Lies{})
	at := func(n string) string { return filepath.Join(a, n) }
	put := func(d, n string) { must(t, os.WriteFile(filepath.Join(d, n), []byte(n), 0o644)) }
	put(dir, "f")
	put(dir, "g")

	fa.Set(func(l *Lies) { *l = NFS(); l.Stale = 0 })
	_, err := unix.Open(a, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	is(t, "O_TMPFILE", err, unix.EOPNOTSUPP)
	is(t, "rename flags", unix.Renameat2(unix.AT_FDCWD, at("f"), unix.AT_FDCWD, at("g"), unix.RENAME_EXCHANGE), unix.EINVAL)
	is(t, "xattrs", unix.Setxattr(at("f"), "trusted.x", []byte("v"), 0), unix.EOPNOTSUPP)
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, at("f"), 0, unix.STATX_BTIME, &stx); err != nil || stx.Mask&unix.STATX_BTIME != 0 {
		t.Errorf("birth time: %v, mask %#x", err, stx.Mask)
	}

	// Open files: removed here they keep a name, removed elsewhere they are gone.
	f, err := os.Open(at("f"))
	must(t, err)
	must(t, os.Remove(at("f")))
	es, err := os.ReadDir(a)
	must(t, err)
	if len(es) != 2 || !strings.HasPrefix(es[0].Name(), ".nfs") {
		t.Errorf("after unlink of an open file: %v", es)
	}
	must(t, f.Close())
	waitFor(t, "the name of the file that was open to go", func() bool { es, _ := os.ReadDir(a); return len(es) == 1 })
	f, err = os.Open(at("g"))
	must(t, err)
	must(t, os.Remove(filepath.Join(b, "g")))
	_, err = f.ReadAt(make([]byte, 1), 0)
	is(t, "read of what another host removed", err, unix.ESTALE)
	is(t, "link of it", unix.Linkat(unix.AT_FDCWD, procFd(int(f.Fd())), unix.AT_FDCWD, at("h"), unix.AT_SYMLINK_FOLLOW), unix.ESTALE)
	must(t, f.Close())

	// The second answer of a request that was made twice.
	fb.Set(func(l *Lies) { l.Repeat = func(op, name string) bool { return name == "twice" || op == "rename" } })
	put(b, "once")
	is(t, "link", os.Link(filepath.Join(b, "once"), filepath.Join(b, "twice")), unix.EEXIST)
	var st unix.Stat_t
	if must(t, unix.Stat(filepath.Join(dir, "twice"), &st)); st.Nlink != 2 {
		t.Errorf("%d links", st.Nlink)
	}
	is(t, "unlink", os.Remove(filepath.Join(b, "twice")), unix.ENOENT)
	is(t, "rename", os.Rename(filepath.Join(b, "once"), filepath.Join(b, "moved")), unix.ENOENT)
	if _, err := os.Stat(filepath.Join(dir, "moved")); err != nil {
		t.Error(err)
	}

	// What is not safe.
	fb.Set(func(l *Lies) { *l = Lies{Unseen: func(n string) bool { return n == "moved" || n == "new" }} })
	put(dir, "x")
	is(t, "link over what is not seen", os.Link(filepath.Join(b, "x"), filepath.Join(b, "moved")), unix.EEXIST)
	fb.Set(func(l *Lies) { l.LinkReplaces, l.ExclIgnored = true, true })
	must(t, os.Link(filepath.Join(b, "x"), filepath.Join(b, "moved")))
	fd, err := unix.Open(filepath.Join(dir, "new"), unix.O_CREAT|unix.O_RDWR, 0o600)
	must(t, err)
	must(t, unix.Close(fd))
	fd, err = unix.Open(filepath.Join(b, "new"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
	if must(t, err); fd >= 0 {
		must(t, unix.Close(fd))
	}

	fb.Set(func(l *Lies) {
		*l = Lies{Before: func(op, name string) unix.Errno {
			if op == "mkdir" && name == "no" {
				return unix.EDQUOT
			}
			return 0
		}}
	})
	is(t, "mkdir", os.Mkdir(filepath.Join(b, "no"), 0o755), unix.EDQUOT)
	if fb.Asked("mkdir") != 1 {
		t.Errorf("%d requests", fb.Asked("mkdir"))
	}
}

// What one mount has seen it believes, whatever another does.
func TestStale(t *testing.T) {
	dir, a, _, _, _ := two(t, Lies{Stale: time.Hour})
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o644))
	if _, err := os.Stat(filepath.Join(a, "f")); err != nil {
		t.Fatal(err)
	}
	_, err := os.Stat(filepath.Join(a, "g"))
	is(t, "stat", err, unix.ENOENT)
	must(t, os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")))
	if _, err := os.Stat(filepath.Join(a, "f")); err != nil {
		t.Errorf("a name that was moved away is not there any more: %v", err)
	}
	_, err = os.Stat(filepath.Join(a, "g"))
	is(t, "a name that was not there", err, unix.ENOENT)
}

func TestNoLocks(t *testing.T) {
	dir, a, _, _, _ := two(t, Lies{NoLocks: true})
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	f, err := os.Open(filepath.Join(a, "f"))
	must(t, err)
	defer f.Close()
	is(t, "flock", unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.ENOLCK)
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for began := time.Now(); !f(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("no end of waiting for %s", what)
		}
	}
}

func TestStart(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	base := testbed.TempDir(t)
	dir, point := filepath.Join(base, "dir"), filepath.Join(base, "point")
	for _, d := range []string{dir, point} {
		must(t, os.Mkdir(d, 0o755))
	}
	Start(t, "lustre", dir, point)
	must(t, os.WriteFile(filepath.Join(point, "f"), []byte("content"), 0o640))
	if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	_, err := unix.Open(point, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	is(t, "O_TMPFILE", err, unix.EOPNOTSUPP)
}
