package traps

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestDirectDescriptorIsMapped maps a file of the lower through a descriptor
// opened with O_DIRECT, as ext4 lets it be, and looks at it and at what is
// written to it through that descriptor and another one.
func TestDirectDescriptorIsMapped(t *testing.T) {
	const size = 8192
	old := strings.Repeat("a", size)
	inBothModes(t, func(t *testing.T, lower string) {
		put(t, filepath.Join(lower, "f"), old, 0o644)
	}, func(t *testing.T, s *stack) {
		fd, err := unix.Open(s.Path("f"), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		defer func() { must(t, unix.Munmap(m)) }()
		if string(m) != old {
			t.Errorf("the mapping shows something else than the lower: %q...", m[:8])
		}

		copy(m[4096:], "through the mapping")
		must(t, unix.Msync(m, unix.MS_SYNC))
		page := aligned(t, 4096)
		if _, err := unix.Pread(fd, page, 4096); err != nil || !strings.HasPrefix(string(page), "through the mapping") {
			t.Errorf("read directly: %q, %v", page[:20], err)
		}

		copy(page, "written directly")
		_, err = unix.Pwrite(fd, page, 0)
		must(t, err)
		if !strings.HasPrefix(string(m), "written directly") {
			t.Errorf("the mapping shows %q after a direct write", m[:20])
		}
		want := "written directly" + string(page[16:]) + "through the mapping" + old[4096+19:]
		if got := content(t, s.Path("f")); got != want {
			t.Errorf("another descriptor reads %q... %q...", got[:20], got[4096:4120])
		}
		if got := content(t, filepath.Join(s.upper, "f")); got != want {
			t.Errorf("the upper has %q... %q...", got[:20], got[4096:4120])
		}
	})
}

// TestDirectReadsAreWhole reads at offsets within a page: what FUSE asks for otherwise
// begins at one.
func TestDirectReadsAreWhole(t *testing.T) {
	const size = 1 << 20
	old := make([]byte, size)
	for i := range old {
		old[i] = byte(i>>9) + byte(i>>17)
	}
	inBothModes(t, func(t *testing.T, lower string) {
		put(t, filepath.Join(lower, "f"), string(old), 0o644)
	}, func(t *testing.T, s *stack) {
		fd, err := unix.Open(s.Path("f"), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		buf := aligned(t, size)
		for n := 512; n <= 300<<10; n += 3 * 512 {
			off := 4096*(n%7) + 512*(n/512%8)
			got, err := unix.Pread(fd, buf[:n], int64(off))
			if err != nil || got != n || string(buf[:n]) != string(old[off:off+n]) {
				t.Fatalf("%d bytes at %d: %d, %v", n, off, got, err)
			}
		}
	})
}

func aioContext(t *testing.T) (ctx uint64) {
	t.Helper()
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ctx)), 0); errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, uintptr(ctx), 0, 0) })
	return ctx
}

// submit writes b at the begin of fd and waits for its end.
func submit(t *testing.T, ctx uint64, fd int, b []byte) {
	t.Helper()
	type iocb struct { // linux/aio_abi.h
		_      [2]uint64 // data, key and flags
		opcode uint16
		_      uint16 // priority
		fd     uint32
		buf, n uint64
		_      [3]uint64 // offset 0; the rest is reserved
	}
	type event struct{ data, obj, res, res2 int64 }
	const pwrite = 1
	cb := &iocb{opcode: pwrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), n: uint64(len(b))}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(ctx), 1, uintptr(unsafe.Pointer(&cb))); errno != 0 {
		t.Fatal(errno)
	}
	var ev event
	if _, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(ctx), 1, 1, uintptr(unsafe.Pointer(&ev)), 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	if ev.res != int64(len(b)) {
		t.Fatalf("the write returned %d", ev.res)
	}
}

// aligned returns memory that O_DIRECT takes.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { must(t, syscall.Munmap(b)) })
	return b
}

// TestDirectWritesAreSeen writes directly, by io_submit(2), while others read through the page cache:
// who reads after a write has ended sees it, whatever a reader has put into the
// cache while it was under way.
func TestDirectWritesAreSeen(t *testing.T) {
	const size = 512 << 10
	for _, options := range []string{"overlay", "migrate", "overlay,passthrough=off", "migrate,passthrough=off"} {
		t.Run(options, func(t *testing.T) {
			s := layers(t)
			put(t, filepath.Join(s.lower, "f"), strings.Repeat("\x00", size), 0o644)
			s.mount(t, options)
			fd, err := unix.Open(s.Path("f"), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			aio := aioContext(t)
			end := time.Now().Add(time.Second)
			var readers sync.WaitGroup
			for range 2 {
				readers.Go(func() {
					for time.Now().Before(end) {
						if _, err := os.ReadFile(s.Path("f")); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			block := aligned(t, size)
			for k := byte(1); time.Now().Before(end) && !t.Failed(); k++ {
				for i := range block {
					block[i] = k
				}
				submit(t, aio, fd, block)
				if got := content(t, s.Path("f")); got != string(block) {
					t.Errorf("after write %d: %d of %d bytes are older", k, size-strings.Count(got, string([]byte{k})), size)
				}
			}
			readers.Wait()
		})
	}
}
