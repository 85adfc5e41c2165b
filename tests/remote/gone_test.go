package remote

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// disk is a filesystem that can be mounted on the source's directory.
func (b *bed) disk(name string) (image string) {
	b.t.Helper()
	image = filepath.Join(filepath.Dir(b.dir), name)
	f, err := os.Create(image)
	must(b.t, err)
	must(b.t, f.Truncate(24<<20))
	must(b.t, f.Close())
	testbed.Run(b.t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", image)
	return image
}

func (b *bed) insert(image string) {
	b.t.Helper()
	testbed.Run(b.t, "mount", "-o", "loop", image, b.dir)
}

// eject unmounts the source's directory, under whoever has files open in it.
func (b *bed) eject() {
	b.t.Helper()
	must(b.t, unix.Unmount(b.dir, unix.MNT_DETACH))
}

// TestSourceReplaced: a source whose filesystem is unmounted still has a directory
// at its path, which is empty; one with another disk in it has another tree. Both
// are EIO, whatever is asked that is not known, with and without a new connection,
// and when the right disk is back, so is everything.
func TestSourceReplaced(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	right, wrong := b.disk("right"), b.disk("wrong")
	b.insert(wrong)
	b.put("other", 100)
	must(t, os.Mkdir(filepath.Join(b.dir, "d"), 0o755))
	b.eject()
	b.insert(right)
	t.Cleanup(func() {
		for range testbed.MountsBelow(b.dir) {
			_ = unix.Unmount(b.dir, unix.MNT_DETACH)
		}
	})
	const size = 1 << 20
	b.putLocal()
	b.put("d/file", size)
	b.put("e/file", size)
	b.mount(",timeout=5")
	b.mends(func() error { return b.list("d", "file") })
	h := b.localContent()
	h.replaced = true

	eio := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, want EIO", what, err)
		}
	}
	check := func(when string) {
		t.Helper()
		h.check(when)
		eio(when+": a file", b.right("d/file", size))
		b.inTime(when, func() {
			if _, err := os.Lstat(b.path("other")); err == nil {
				t.Error("a file of the wrong disk is shown")
			}
		})
		eio(when+": another file", b.right("e/file", size))
		// It may be known what was in there.
		if err := b.list("e", "file"); err != nil {
			eio(when+": a directory", err)
		}
	}
	b.eject()
	check("unmounted")
	b.link.Cut()
	check("unmounted, and the connection was lost")
	b.insert(wrong)
	check("another disk")
	b.link.Cut()
	check("another disk, and the connection was lost")
	b.eject()
	b.insert(right)
	b.mends(func() error { return b.right("d/file", size) })
	b.mends(func() error { return b.list("e", "file") })
	h.whole()
	b.m.Unmount()
}

// TestRootGone: the same where the directory itself was removed, or is another
// thing now.
func TestRootGone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const size = 1 << 20
	b.putLocal()
	b.put("d/file", size)
	b.put("e/file", size)
	b.mount(",timeout=5")
	b.mends(func() error { return b.list("d", "file") })
	h := b.localContent()
	h.replaced = true
	away := b.dir + ".away"
	must(t, os.Rename(b.dir, away))
	for what, put := range map[string]func() error{
		"nothing": func() error { return nil },
		"a file":  func() error { return os.WriteFile(b.dir, []byte("x"), 0o644) },
		"a link":  func() error { return os.Symlink(away, b.dir) },
	} {
		must(t, put())
		h.check(what)
		for _, ask := range []func() error{
			func() error { return b.right("d/file", size) },
			func() error { return b.right("e/file", size) },
		} {
			if err := ask(); !errors.Is(err, unix.EIO) {
				t.Errorf("%s where the root was: %v, want EIO", what, err)
			}
		}
		if err := b.list("e", "file"); err != nil && !errors.Is(err, unix.EIO) { // it may be known
			t.Errorf("%s where the root was: %v, want EIO", what, err)
		}
		must(t, os.RemoveAll(b.dir))
	}
	must(t, os.Rename(away, b.dir))
	b.mends(func() error { return b.right("d/file", size) })
	b.mends(func() error { return b.list("e", "file") })
	h.whole()
	b.m.Unmount()
}
