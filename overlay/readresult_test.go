package overlay

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/local"
)

// TestReadAllocates: a read of a file of this host, upper or lower, short or at its
// end, allocates nothing, and has the file's bytes.
func TestReadAllocates(t *testing.T) {
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789"), 50_000)
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := local.Open(dir, local.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lower, err := l.Open(context.Background(), "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lower.Close()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	fs := &FS{log: slog.New(slog.DiscardHandler)}
	for name, h := range map[string]*handle{
		"upper": {fd: fd, n: &node{fs: fs, upper: true}},
		"lower": {fd: -1, lower: lower, n: &node{fs: fs}},
	} {
		fh := fs.handles.add(h)
		for _, c := range []struct{ off, size, want int }{
			{0, 4096, 4096}, {4096, 128 << 10, 128 << 10}, {499_999, 4096, 1}, {499_000, 128 << 10, 1000}, {500_000, 4096, 0},
		} {
			buf := make([]byte, c.size)
			in := &fuse.ReadIn{Fh: fh, Offset: uint64(c.off), Size: uint32(c.size)}
			var got []byte
			read := func() {
				r, st := fs.Read(nil, in, buf)
				if !st.Ok() {
					t.Fatal(st)
				}
				got, _ = r.Bytes(buf)
				r.Done()
			}
			if n := testing.AllocsPerRun(100, read); n != 0 {
				t.Errorf("%s, %d at %d: %v allocations", name, c.size, c.off, n)
			}
			if !bytes.Equal(got, content[c.off:c.off+c.want]) {
				t.Errorf("%s, %d at %d: %d bytes, or others", name, c.size, c.off, len(got))
			}
		}
	}
}

// TestReadCutShort reads across the end of what can be read: the error, not what
// came before it, which would be taken for the whole file.
func TestReadCutShort(t *testing.T) {
	page := os.Getpagesize()
	m, err := unix.MmapPtr(-1, 0, nil, uintptr(2*page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.MunmapPtr(m, uintptr(page)) }()
	if err := unix.MunmapPtr(unsafe.Add(m, page), uintptr(page)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/proc/self/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := int64(uintptr(m))
	if r, err := readFile(fd, make([]byte, page), at); err != nil || r.Size() != page {
		t.Fatalf("what can be read: %v", err)
	}
	if _, err := readFile(fd, make([]byte, 2*page), at); err != unix.EIO {
		t.Errorf("%v, want EIO", err)
	}
}
