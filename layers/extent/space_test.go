package extent

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// TestReadingLeavesRoomToWrite: what is fetched is kept until the filesystem is
// nearly full, and no longer; it is read all the same.
func TestReadingLeavesRoomToWrite(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s, err := OpenStore(fd, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	o, err := s.Cached(Source{
		LayerID: "l", Path: "big", Mode: unix.S_IFREG | 0o644,
		Version: layers.Version{Size: int64(len(content)), Mtime: layers.Time{Sec: time.Now().Unix() - 100}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	b := make([]byte, 64<<10)
	for off := int64(0); off < int64(len(content)); off += int64(len(b)) {
		n, err := o.ReadAt(context.Background(), &source{content: content}, b, off)
		if err != nil || !bytes.Equal(b[:n], content[off:off+int64(n)]) {
			t.Fatalf("read at %d: %d bytes, %v", off, n, err)
		}
	}
	if o.Missing() == 0 || o.Missing() == int64(len(content)) {
		t.Errorf("%d bytes of %d are missing, want some kept and some not", o.Missing(), len(content))
	}
	if err := os.WriteFile(filepath.Join(dir, "mine"), make([]byte, 300<<10), 0o600); err != nil {
		t.Errorf("no room is left to write: %v", err)
	}
}

// TestWritingTakesTheCachesRoom: what can be fetched again is not why a write fails.
func TestWritingTakesTheCachesRoom(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("small", dir, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := openStore(t, dir, bootA)
	defer s.Close()
	src := &source{content: noise(16<<20, 1)}
	o, err := s.Cached(named(src.content, "read"))
	must(t, err)
	defer o.Close()
	b := make([]byte, 64<<10)
	for off := int64(0); off < 12<<20; off += int64(len(b)) {
		if _, err := o.ReadAt(ctx, src, b, off); err != nil {
			t.Fatal(err)
		}
	}
	if n := taken(t, s); n < 5<<20 {
		t.Fatalf("only %d bytes were kept", n)
	}
	p, _, err := s.NewPending(named(src.content, "written"))
	must(t, err)
	defer p.Close()
	mine := noise(6<<20, 2)
	if n, err := p.WriteAt(mine, 100); n != len(mine) || err != nil {
		t.Fatalf("%d bytes of %d are written: %v", n, len(mine), err)
	}
	got := make([]byte, len(mine))
	_, err = p.ReadAt(ctx, nil, got, 100)
	must(t, err)
	want(t, "written", got, mine)
	readCached(t, s, src, named(src.content, "read"), src.content)
}
