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
// end, allocates nothing, but where it goes by a pipe, and has the file's bytes.
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
		"lower": {fd: -1, lower: lower, within: int64(len(content)), n: &node{fs: fs}},
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
			piped := name == "lower" && c.want >= spliceMin
			if n := testing.AllocsPerRun(100, read); n != 0 && !piped {
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

// TestReadByPipe: what is read by way of a pipe is whole, wherever it begins. A file
// that is shorter by now than it was when it was opened is read to its end, and what
// a pipe has lost on the way is an error.
func TestReadByPipe(t *testing.T) {
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * i >> 8)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<20)
	for _, c := range []struct {
		off, size, want int
		piped           bool
	}{
		{0, spliceMin, spliceMin, true}, {0, spliceMin - 1, spliceMin - 1, false}, {0, 1016 << 10, 1016 << 10, true}, {4096, 1015 << 10, 1015 << 10, true}, {4095, 1015 << 10, 1015 << 10, false},
		{8192, 99_999, 99_999, true},
		{0, 1 << 20, 1 << 20, false}, {2 << 20, 1 << 20, 1 << 20, false}, {3<<20 - 70_000, 128 << 10, 70_000, false}, {3 << 20, 128 << 10, 0, false},
	} {
		r, err := readBelow(fd, buf[:c.size], int64(c.off), 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, piped := r.(*inPipe); piped != c.piped {
			t.Errorf("%d at %d: by a pipe: %v", c.size, c.off, piped)
		}
		got, st := r.Bytes(buf)
		r.Done()
		if !st.Ok() || !bytes.Equal(got, content[c.off:c.off+c.want]) {
			t.Errorf("%d at %d: %d bytes, or others: %v", c.size, c.off, len(got), st)
		}
	}
	r, err := readBelow(fd, buf[:spliceMin], 0, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Done()
	if _, err := r.(*inPipe).pair.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, st := r.Bytes(buf); st != fuse.EIO {
		t.Errorf("a pipe that has lost a byte: %v, want EIO", st)
	}
}
