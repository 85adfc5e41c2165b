package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// another mounts the source read-only on a mountpoint of that name.
func (s *source) another(t *testing.T, name, options string) *testbed.Mounted {
	t.Helper()
	point := filepath.Join(s.local, name)
	must(t, os.MkdirAll(point, 0o755))
	return testbed.Mount(t, "lowerdir="+s.sshd.Target(s.dir)+options, point, testbed.MountConfig{Env: s.sshd.Env()})
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, want %d; %v", path, len(got), len(want), err)
	}
}

// came returns how many bytes came over the link while f ran.
func (s *source) came(f func()) int64 {
	_, before := s.link.Bytes()
	f()
	_, after := s.link.Bytes()
	return after - before
}

// taken returns how many bytes the files below dir take on the disk.
func taken(t *testing.T, dir string) (sum int64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}))
	return sum
}

// TestSharedCache: what one mount has fetched others need not, while it has the file
// open, after it was killed, and without the source; also without an upper. What is
// written goes into the mount's own upper.
func TestSharedCache(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "file", 6<<20+5)
	small := s.put(t, "small", 3000)
	large := s.put(t, "large", 72<<20) // more than is copied at once
	options := ",cachedir=" + filepath.Join(s.local, "cache") + ",prefetch=off"
	a := s.another(t, "a", options)
	b := s.mount(t, options)

	open, err := os.Open(a.Path("file"))
	must(t, err)
	same(t, a.Path("file"), want)
	same(t, a.Path("small"), small)
	same(t, a.Path("large"), large)
	if n := s.came(func() { same(t, b.Path("file"), want); same(t, b.Path("small"), small) }); n > 1<<20 {
		t.Errorf("%d bytes came that another mount has", n)
	}
	a.Kill()
	open.Close()
	a.RemoveDead()
	if n := s.came(func() {
		f, err := os.OpenFile(b.Path("file"), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("mine"), 1<<20)
		must(t, err)
		must(t, f.Close())
		s.filled(t, "file")
	}); n > 1<<20 {
		t.Errorf("%d bytes came that a killed mount had", n)
	}
	if n := s.came(func() {
		f, err := os.OpenFile(b.Path("large"), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("mine"), 1<<20)
		must(t, err)
		must(t, f.Close())
		s.filled(t, "large")
	}); n > 1<<20 {
		t.Errorf("%d bytes came of a large file that is in the cache", n)
	}
	copy(large[1<<20:], "mine")
	same(t, filepath.Join(s.upper(), "large"), large)
	mine := bytes.Clone(want)
	copy(mine[1<<20:], "mine")
	same(t, b.Path("file"), mine)
	same(t, filepath.Join(s.upper(), "file"), mine)
	b.Unmount()

	a = s.another(t, "a", options)
	if _, err := os.Stat(a.Path("file")); err != nil {
		t.Fatal(err)
	}
	if n := s.came(func() { same(t, a.Path("file"), want) }); n > 1<<20 {
		t.Errorf("%d bytes came after a remount", n)
	}
	a.Unmount()

	// Somebody has been there.
	var objects []string
	must(t, filepath.WalkDir(filepath.Join(s.local, "cache"), func(p string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".data") {
			objects = append(objects, p)
		}
		return err
	}))
	if len(objects) != 3 {
		t.Fatalf("%q", objects)
	}
	for _, p := range objects {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("not what was fetched"), 100)
		must(t, err)
		must(t, f.Close())
	}
	a = s.another(t, "a", options)
	same(t, a.Path("file"), want)
	same(t, a.Path("small"), small)
}

// TestCacheSize: more than the cache holds can be read through it.
func TestCacheSize(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "large", 24<<20)
	m := s.mount(t, ",cache_size=8M")
	for range 2 {
		same(t, m.Path("large"), want)
		if n := taken(t, s.work()); n > 8<<20+256<<10 {
			t.Errorf("%d bytes are kept of 8 MiB", n)
		}
	}
	m.Unmount()
}

// TestCachedirIsRefused: one line says what is wrong, before anybody has to log in as far
// as it can be seen then, and nothing was made.
func TestCachedirIsRefused(t *testing.T) {
	s := newSource(t)
	open := filepath.Join(s.local, "open to all")
	must(t, os.Mkdir(open, 0o755))
	must(t, os.Chmod(open, 0o755))
	trap := filepath.Join(s.local, "trap")
	must(t, os.MkdirAll(filepath.Join(trap, "elsewhere"), 0o700))
	must(t, os.Chmod(trap, 0o700))
	must(t, os.Symlink("elsewhere", filepath.Join(trap, "extents-2")))
	for dir, want := range map[string]string{
		open:                               "closed to others",
		trap:                               "extents-2",
		filepath.Join(s.upper(), "cache"):  "is inside upper",
		filepath.Join(s.mnt(), "cache"):    "is inside the mountpoint",
		filepath.Join(s.local, "no", "no"): "no such file",
	} {
		lower := "nobody.invalid:/"
		if dir == trap {
			lower = s.sshd.Target(s.dir)
		}
		m, err := testbed.TryMount(t, "lowerdir="+lower+",upperdir="+s.upper()+",cachedir="+dir, s.mnt(),
			testbed.MountConfig{Env: s.sshd.Env()})
		if err == nil {
			m.Unmount()
			t.Errorf("%s: mounted", dir)
		} else if _, line, _ := strings.Cut(m.Log(), "migratefs: "); !strings.Contains(line, want) || strings.Index(line, "\n") != len(line)-1 {
			t.Errorf("%s: %q", dir, m.Log())
		}
		if filepath.Base(dir) == "cache" {
			if _, err := os.Lstat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	}
}

// TestMountWithoutItsSource: it is refused in one line, which says where to find what is here.
func TestMountWithoutItsSource(t *testing.T) {
	s := newSource(t)
	m, err := testbed.TryMount(t, "lowerdir=nobody.invalid:/,upperdir="+s.upper(), s.mnt(), testbed.MountConfig{Env: s.sshd.Env()})
	if err == nil {
		m.Unmount()
		t.Fatal("mounted")
	}
	_, line, _ := strings.Cut(m.Log(), "migratefs: ")
	if !strings.Contains(line, "nobody.invalid") || !strings.Contains(line, "whole here lies in "+strconv.Quote(s.upper())) || strings.Index(line, "\n") != len(line)-1 {
		t.Errorf("%q", m.Log())
	}
}
