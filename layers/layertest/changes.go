package layertest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// changes: the tree changes under an open file. What is read then is the version
// that was opened, or ErrStale: never a mix, never a shorter file, never the new
// content. Every change is at least seconds away from the version before, so
// that a layer that sees whole seconds sees it.
func (s *suite) changes(t *testing.T) {
	const size = 700_001
	before, after := pattern(1, size), pattern(2, size)
	for _, c := range []struct {
		name   string
		change func(name string) error
		stale  bool // the version that was opened exists nowhere any more
	}{
		{"rewritten in place", func(n string) error { return overwrite(n, after) }, true},
		{"a byte in the middle", func(n string) error { return overwrite(n, append(bytes.Clone(before[:size/2]), 'x')) }, true},
		{"appended", func(n string) error { return appendTo(n, after) }, true},
		{"truncated", func(n string) error { return os.Truncate(n, size/2) }, true},
		{"truncated to nothing", func(n string) error { return os.Truncate(n, 0) }, true},
		{"truncated and filled again", func(n string) error { return os.WriteFile(n, after, 0o644) }, true},
		{"replaced", func(n string) error { return replace(n, after) }, false},
		{"removed", os.Remove, false},
		{"renamed", func(n string) error { return os.Rename(n, n+".moved") }, false},
		{"a directory now", func(n string) error { return errors.Join(os.Remove(n), os.Mkdir(n, 0o755)) }, false},
		{"a symlink now", func(n string) error { return errors.Join(os.Rename(n, n+".moved"), os.Symlink("f.moved", n)) }, false},
		{"a FIFO now", func(n string) error { return errors.Join(os.Remove(n), unix.Mkfifo(n, 0o644)) }, false},
	} {
		for _, when := range []string{"before a read", "between reads", "before open"} {
			if s.limits.Live && c.stale && when != "before open" {
				continue
			}
			t.Run(c.name+", "+when, func(t *testing.T) {
				ctx := background(t)
				source := t.TempDir()
				name := filepath.Join(source, "f")
				file(t, name, before, 0o644)
				t.Cleanup(func() { release(name) })
				l := s.new(t, source)
				a, err := l.Stat(ctx, "f")
				must(t, err)
				if when == "before open" {
					must(t, c.change(name))
					checkOpen(t, l, &a)
					return
				}
				f, err := l.Open(ctx, "f", &a)
				must(t, err)
				defer f.Close()
				if when == "between reads" {
					b := make([]byte, size/3)
					if n, err := f.ReadAt(ctx, b, 0); err != nil || !bytes.Equal(b[:n], before[:size/3]) {
						t.Fatalf("%d, %v before the change", n, err)
					}
				}
				must(t, c.change(name))
				for _, off := range []int{0, size / 3, size/2 + 1, size - 10, size} {
					b := make([]byte, 300_000)
					n, err := f.ReadAt(ctx, b, int64(off))
					checkVersion(t, before, b[:n], off, len(b), err, c.stale && off < size)
				}
			})
		}
	}
}

// checkVersion: got is what was read at off, where n were asked for.
func checkVersion(t *testing.T, before, got []byte, off, n int, err error, stale bool) {
	t.Helper()
	if errors.Is(err, layers.ErrStale) {
		if len(got) != 0 {
			t.Errorf("at %d: %d bytes together with ErrStale", off, len(got))
		}
		return
	}
	if stale {
		t.Errorf("at %d: %d bytes, %v, want ErrStale", off, len(got), err)
	}
	want := before[off:min(off+n, len(before))]
	if err != nil && err != io.EOF || !bytes.Equal(got, want) || (err == io.EOF) != (len(want) < n) {
		t.Errorf("at %d: %d bytes, %v, want %d of the version that was opened, or ErrStale", off, len(got), err, len(want))
	}
}

// checkOpen: the file is not what want describes any more.
func checkOpen(t *testing.T, l layers.Layer, want *layers.Attr) {
	t.Helper()
	f, err := l.Open(background(t), "f", want)
	if err == nil {
		f.Close()
		t.Fatal("a file that was changed opens as the one that was looked up")
	}
	if !errors.Is(err, layers.ErrStale) && !errors.Is(err, layers.ErrNotRegular) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ErrStale, or what is there now", err)
	}
	// The layer is as usable as before.
	if _, err := l.ReadDir(background(t), ""); err != nil {
		t.Error(err)
	}
}

// release lets go whoever hangs in opening the FIFO name.
func release(name string) {
	if fi, err := os.Lstat(name); err == nil && fi.Mode().Type() == os.ModeNamedPipe {
		if f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	}
}

func overwrite(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	return err
}

func appendTo(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	return err
}

func replace(name string, content []byte) error {
	if err := os.WriteFile(name+".new", content, 0o644); err != nil {
		return err
	}
	now := time.Now()
	return errors.Join(os.Chtimes(name+".new", now, now), os.Rename(name+".new", name))
}
