package traps

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// What changes no data needs no room for data, and what does fails without it, and
// harms nothing.
func TestMetadataMovesNoData(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	small(t, s, "1m")
	big := string(bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16))
	put(t, filepath.Join(s.lower, "big"), big, 0o640)
	put(t, filepath.Join(s.lower, "linked"), big, 0o640)
	must(t, os.Link(filepath.Join(s.lower, "linked"), filepath.Join(s.lower, "other")))
	s.mount(t, "overlay")
	old := s.open(t, "big", os.O_RDONLY)
	must(t, os.Chmod(s.Path("big"), 0o600))
	must(t, os.Chtimes(s.Path("big"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	must(t, unix.Setxattr(s.Path("big"), "user.one", []byte("1"), 0))
	must(t, os.Rename(s.Path("big"), s.Path("big2")))
	must(t, os.Link(s.Path("big2"), s.Path("big3")))
	must(t, os.Chown(s.Path("linked"), 1000, 1000))
	for range 2 {
		for _, name := range []string{"big2", "big3", "linked", "other"} {
			if got := content(t, s.Path(name)); got != big {
				t.Errorf("%s: %d bytes, %.10q...", name, len(got), got)
			}
			if is := lstat(t, s.Path(name)); is.Blocks < 4<<20/512 {
				t.Errorf("%s shows %d blocks", name, is.Blocks)
			}
			if name == "other" {
				continue // the index leads to it
			}
			up := lstat(t, filepath.Join(s.upper, name))
			if up.Size != int64(len(big)) || up.Blocks > 8 {
				t.Errorf("%s in the upper has %d bytes and %d blocks", name, up.Size, up.Blocks)
			}
		}
		// The disk is too small for the data. Nothing of a failed try stays there.
		for _, change := range []func() error{
			func() error { _, err := s.open(t, "big3", os.O_RDWR).WriteAt([]byte("x"), 0); return err },
			func() error { return os.Truncate(s.Path("other"), 3<<20) },
		} {
			if err := change(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("a change of data without room for it: %v", err)
			}
		}
	}
	must(t, os.Truncate(s.Path("big3"), 0)) // needs none
	if got := content(t, s.Path("big2")); got != "" {
		t.Errorf("cut to nothing: %d bytes", len(got))
	}
	f := s.open(t, "big2", os.O_WRONLY|os.O_APPEND)
	_, err := f.WriteString("new")
	must(t, err)
	seen := make([]byte, 10)
	if n, _ := old.ReadAt(seen, 0); string(seen[:n]) != "new" {
		t.Errorf("what was opened before sees %q", seen[:n])
	}
	if got := content(t, filepath.Join(s.upper, "big3")); got != "new" {
		t.Errorf("the upper has %q", got)
	}
}

// A mapping of a file without data in the upper is a mapping of the file.
func TestMappedMetacopy(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20/16)
	put(t, filepath.Join(s.lower, "big"), string(big), 0o640)
	s.mount(t, "overlay")
	must(t, os.Chmod(s.Path("big"), 0o600))
	f := s.open(t, "big", os.O_RDWR)
	m, err := unix.Mmap(int(f.Fd()), 0, len(big), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	m[500000] = 'X'
	big[500000] = 'X'
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	if !bytes.Equal([]byte(content(t, filepath.Join(s.upper, "big"))), big) {
		t.Error("the upper has other data")
	}
	if n, err := unix.Lgetxattr(filepath.Join(s.upper, "big"), "trusted.overlay.metacopy", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("whole, and marked: %d, %v", n, err)
	}
	// Through a second opening, which may be another way to the data.
	g := s.open(t, "big", os.O_RDWR)
	_, err = g.WriteAt([]byte("second"), 0)
	must(t, err)
	if got := content(t, s.Path("big")); got[:6] != "second" || got[500000] != 'X' {
		t.Errorf("%.10q...", got)
	}
}

// What a metacopy needs and has not is an error, never zeros: a file below it, of
// its length, with its digest. It can be removed.
func TestMetacopyWithoutItsData(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	mark := func(name string, size int64, value []byte) {
		p := filepath.Join(s.upper, name)
		put(t, p, "", 0o640)
		must(t, os.Truncate(p, size))
		must(t, unix.Setxattr(p, "trusted.overlay.metacopy", value, 0))
	}
	for _, name := range []string{"longer", "digest", "version"} {
		put(t, filepath.Join(s.lower, name), "12345", 0o640)
	}
	put(t, filepath.Join(s.lower, "fine"), "12345", 0o640)
	mark("fine", 5, []byte{0, 4, 0, 0})
	mark("longer", 6, nil)
	mark("digest", 5, append([]byte{0, 36, 0, 1}, make([]byte, 32)...))
	mark("version", 5, []byte{1, 4, 0, 0})
	mark("nothing", 5, nil)
	s.mount(t, "overlay")
	if got := content(t, s.Path("fine")); got != "12345" {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"longer", "digest", "version", "nothing"} {
		if b, err := os.ReadFile(s.Path(name)); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if f, err := os.OpenFile(s.Path(name), os.O_WRONLY|os.O_APPEND, 0); err == nil {
			if _, err := f.WriteString("x"); !errors.Is(err, unix.EIO) {
				t.Errorf("append to %s: %v", name, err)
			}
			f.Close()
		}
	}
	for _, name := range []string{"longer", "digest"} {
		must(t, os.Remove(s.Path(name)))
	}
}
