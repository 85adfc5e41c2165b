package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/layertest"
)

func TestLayer(t *testing.T) {
	for name, cfg := range map[string]Config{"plain": {}, "private": {Private: true}, "recursive": {Recursive: true}} {
		t.Run(name, func(t *testing.T) {
			layertest.Run(t, layertest.Limits{Live: true}, func(t *testing.T, dir string) layers.Layer {
				l, err := Open(dir, cfg)
				if err != nil {
					t.Fatal(err)
				}
				return l
			})
		})
	}
}

// TestPrivateIsReadOnly: a write that goes astray into an overlay lower is an
// error, and reading leaves no access time.
func TestPrivateIsReadOnly(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	old := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, old, 0); err != nil {
		t.Fatal(err)
	}
	l, err := Open(dir, Config{Private: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := sys.Create(l.Root(), "g", unix.O_WRONLY, 0o644); err != unix.EROFS {
		t.Errorf("creating a file in the clone: %v, want EROFS", err)
	}
	if err := sys.Unlink(l.Root(), "f"); err != unix.EROFS {
		t.Errorf("unlinking in the clone: %v, want EROFS", err)
	}
	f, err := l.Open(context.Background(), "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(context.Background(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	a, err := l.Stat(context.Background(), "f")
	if err != nil || a.Atime.Sec != 1 {
		t.Errorf("atime after a read is %d, %v; want 1", a.Atime.Sec, err)
	}
}

func TestRecursiveShowsSubmounts(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("sub", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(sub, unix.MNT_DETACH) }()
	if err := os.WriteFile(filepath.Join(sub, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for recursive, want := range map[bool]error{true: nil, false: unix.ENOENT} {
		l, err := Open(dir, Config{Private: true, Recursive: recursive})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Stat(context.Background(), "sub/f"); !errors.Is(err, want) {
			t.Errorf("recursive=%v: file on a mount below: %v, want %v", recursive, err, want)
		}
		l.Close()
	}
}
