package traps

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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

// aligned returns memory that O_DIRECT takes.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { must(t, syscall.Munmap(b)) })
	return b
}
