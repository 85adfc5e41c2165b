package copyup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// The sparse file has data, holes, and space that was allocated and never written.
const (
	sparseSize  = 32<<20 + 12345
	sparseDense = 20 << 20 // half of what was never written, and the data
)

func sparse(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	r := rand.NewChaCha8([32]byte{4})
	b := make([]byte, 5<<20)
	_, _ = r.Read(b)
	for _, off := range []int64{1<<20 + 17, 24 << 20} {
		_, err := f.WriteAt(b, off)
		must(t, err)
	}
	_, err = f.WriteAt(b[:300], sparseSize-300)
	must(t, err)
	if err := unix.Fallocate(int(f.Fd()), 0, 7<<20, 16<<20); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	must(t, f.Sync())
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// hooked runs f with h as the hook of every change.
func hooked(h sys.Hook, f func()) {
	var mu sync.Mutex
	sys.SetHook(func(c sys.Change) error {
		mu.Lock()
		defer mu.Unlock()
		return h(c)
	})
	defer sys.SetHook(nil)
	f()
}

// TestData copies between filesystems that share blocks, that copy in the kernel,
// and that do neither.
func TestData(t *testing.T) {
	disks := map[string]string{}
	for _, fs := range []string{"tmpfs", "ext4", "xfs", "btrfs"} {
		disks[fs] = disk(t, fs, "size=400m")
		sparse(t, filepath.Join(disks[fs], "sparse"))
	}
	for _, c := range []struct {
		from, to, by string
	}{
		{"tmpfs", "tmpfs", "copy_file_range"}, {"ext4", "ext4", "copy_file_range"},
		{"xfs", "xfs", "clone"}, {"btrfs", "btrfs", "clone"},
		{"xfs", "ext4", "write"}, {"btrfs", "xfs", "write"}, {"ext4", "tmpfs", "write"},
	} {
		for _, size := range []int64{sparseSize, sparseSize - 1, 25<<20 + 1, 5000} {
			t.Run(fmt.Sprintf("%s to %s %d", c.from, c.to, size), func(t *testing.T) {
				from := filepath.Join(disks[c.from], "sparse")
				src := sourceOf(t, from)
				src.Size = size
				// Pages in memory that were read make data of what was never written.
				must(t, unix.Fadvise(src.File.(layers.Descriptor).Fd(), 0, 0, unix.FADV_DONTNEED))
				seen := map[sys.Change]int{}
				name := fmt.Sprint("copy", size)
				var copied *Copy
				var err error
				hooked(func(c sys.Change) error { seen[c]++; return nil }, func() {
					copied, err = File(t.Context(), src, place(t, disks[c.to], name), rootly)
				})
				must(t, err)
				must(t, copied.Publish())
				unix.Close(copied.Fd)
				to := filepath.Join(disks[c.to], name)
				if got := read(t, to); !bytes.Equal(got, read(t, from)[:size]) {
					t.Errorf("%d bytes, and others", len(got))
				}
				var st unix.Stat_t
				must(t, unix.Stat(to, &st))
				if st.Blocks*512 > sparseDense && c.from != "btrfs" { // which shares what was never written, too
					t.Errorf("%d KiB on disk: holes were filled", st.Blocks/2)
				}
				if size > 1<<20 && seen[sys.Change(c.by)] == 0 {
					t.Errorf("not by %s: %v", c.by, seen)
				}
				if c.by == "clone" && (seen["write"] > 1 || seen["copy_file_range"] > 1) {
					t.Errorf("more than the last block was copied: %v", seen)
				}
				must(t, os.Remove(to))
			})
		}
	}
	if n := len(furtherWorkers); n > 0 {
		t.Errorf("%d workers are still counted", n)
	}
}

// badCopy copies the sparse file under a hook and wants an error, and nothing left
// of the copy.
func badCopy(ctx context.Context, t *testing.T, want error, from, to string, h sys.Hook) {
	t.Helper()
	src := sourceOf(t, from)
	at := place(t, to, "copy")
	before, was := fds(t), read(t, from)
	hooked(h, func() {
		if c, err := File(ctx, src, at, rootly); !errors.Is(err, want) {
			if err == nil {
				c.Discard()
			}
			t.Errorf("%v, want %v", err, want)
		}
	})
	if after := fds(t); !slices.Equal(before, after) {
		t.Errorf("descriptors %q, were %q", after, before)
	}
	for _, dir := range []string{to, filepath.Join(to, ".work")} {
		es, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range es {
			if e.Name() != ".work" && e.Name() != "lost+found" && filepath.Join(dir, e.Name()) != from {
				t.Errorf("%s is left", e.Name())
			}
		}
	}
	if n := len(furtherWorkers); n > 0 {
		t.Errorf("%d workers are still counted", n)
	}
	if errors.Is(want, ErrChanged) {
		return
	}
	if !bytes.Equal(was, read(t, from)) {
		t.Error("the source has changed")
	}
}

func fds(t *testing.T) (targets []string) {
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range es {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "/") {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// nth calls f before the n-th change of a kind.
func nth(n int, kind sys.Change, f func() error) sys.Hook {
	return func(c sys.Change) error {
		if c == kind {
			if n--; n == 0 {
				return f()
			}
		}
		return nil
	}
}

// Each error on the way is what comes out, and the copy is gone.
func TestDataFails(t *testing.T) {
	xfs, tmpfs := disk(t, "xfs", ""), disk(t, "tmpfs", "size=400m")
	from := filepath.Join(xfs, "sparse")
	sparse(t, from)
	for _, c := range []struct {
		kind sys.Change
		n    int
		err  unix.Errno
	}{
		{"tmpfile", 1, unix.EMFILE}, {"chown", 1, unix.EDQUOT}, {"truncate", 1, unix.EFBIG},
		{"write", 1, unix.ENOSPC}, {"write", 6, unix.EDQUOT}, {"write", 11, unix.EIO},
		{"chmod", 1, unix.EROFS}, {"utimes", 1, unix.EROFS}, {"fsync", 1, unix.EIO}, {"close", 1, unix.EIO}, {"close", 1, unix.EDQUOT},
	} {
		t.Run(fmt.Sprintf("%v at %s %d", c.err, c.kind, c.n), func(t *testing.T) {
			badCopy(t.Context(), t, c.err, from, tmpfs, nth(c.n, c.kind, func() error { return c.err }))
		})
	}
	// What the ioctl says is not the end: the data is copied.
	copied := false
	src := sourceOf(t, from)
	hooked(func(c sys.Change) error {
		if c == "clone" {
			return unix.ENOSPC
		}
		copied = copied || c == "copy_file_range"
		return nil
	}, func() {
		c, err := File(t.Context(), src, place(t, xfs, "copy"), rootly)
		must(t, err)
		c.Discard()
	})
	if !copied {
		t.Error("not copied where it cannot be cloned")
	}
}

func TestDataIsInterrupted(t *testing.T) {
	xfs, tmpfs := disk(t, "xfs", ""), disk(t, "tmpfs", "size=400m")
	from := filepath.Join(xfs, "sparse")
	sparse(t, from)
	for _, n := range []int{1, 3, 9} {
		ctx, cancel := context.WithCancel(t.Context())
		after := 0
		badCopy(ctx, t, context.Canceled, from, tmpfs, func(c sys.Change) error {
			if c == "write" {
				if n--; n < 0 {
					after++
				}
				if n == 0 {
					cancel()
				}
			}
			return nil
		})
		// Each of the others may have been between its look and the call.
		if after > workersPerCopy {
			t.Errorf("%d writes after the interrupt", after)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	badCopy(ctx, t, context.Canceled, from, tmpfs, func(sys.Change) error { return nil })
}

// A source that shrinks or grows while it is copied is not copied: neither the
// zeros after its end nor two versions in one.
func TestSourceChanges(t *testing.T) {
	xfs, tmpfs := disk(t, "xfs", ""), disk(t, "tmpfs", "size=400m")
	from := filepath.Join(xfs, "sparse")
	for _, to := range []int64{sparseSize + 1, 3 << 20, 0} {
		for _, at := range []struct {
			dir  string
			kind sys.Change
		}{{tmpfs, "tmpfile"}, {tmpfs, "write"}, {xfs, "clone"}, {xfs, "tmpfile"}} {
			sparse(t, from)
			badCopy(t.Context(), t, ErrChanged, from, at.dir, nth(1, at.kind, func() error { return os.Truncate(from, to) }))
		}
	}
}

// A file that is too large for the upper's filesystem.
func TestTooLarge(t *testing.T) {
	from, to := filepath.Join(disk(t, "xfs", ""), "huge"), disk(t, "ext4", "")
	must(t, os.WriteFile(from, []byte("data"), 0o600))
	must(t, os.Truncate(from, 20<<40))
	src := sourceOf(t, from)
	if _, err := File(t.Context(), src, place(t, to, "copy"), rootly); !errors.Is(err, unix.EFBIG) {
		t.Error(err)
	}
}

// A disk that cannot be read any more: the end of its image is gone.
func TestSourceCannotBeRead(t *testing.T) {
	dir := disk(t, "ext4", "")
	from := filepath.Join(dir, "sparse")
	sparse(t, from)
	to := disk(t, "tmpfs", "size=400m")
	must(t, unix.Unmount(dir, 0)) // nothing of it stays in memory
	image := filepath.Join(filepath.Dir(dir), "image")
	run(t, "mount", "-o", "loop,ro,noload", image, dir)
	src := sourceOf(t, from)
	// The metadata of this size of ext4 lies at the beginning and is read by now.
	b := make([]byte, 1)
	if _, err := src.File.ReadAt(t.Context(), b, sparseSize-1); err != nil {
		t.Fatal(err)
	}
	must(t, os.Truncate(image, 4<<20))
	_, err := File(t.Context(), src, place(t, to, "copy"), rootly)
	if !errors.Is(err, unix.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	must(t, os.Truncate(image, 512<<20))
}

// A file that has no descriptor here: its errors and its end.
func TestReads(t *testing.T) {
	to := disk(t, "tmpfs", "size=64m")
	for _, c := range []struct {
		name string
		f    reads
		want error
	}{
		{"all", reads{size: 5 << 20}, nil},
		{"ends early", reads{size: 4<<20 - 1}, layers.ErrStale},
		{"cannot be read", reads{size: 5 << 20, err: unix.EIO}, unix.EIO},
	} {
		src := Source{File: c.f, Size: 5 << 20}
		src.Attr.Mode, src.Attr.Size = unix.S_IFREG|0o640, 5<<20
		got, err := File(t.Context(), src, place(t, to, c.name), rootly)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			must(t, got.Publish())
			unix.Close(got.Fd)
			if b := read(t, filepath.Join(to, c.name)); len(b) != 5<<20 || bytes.Count(b, []byte("r")) != len(b) {
				t.Errorf("%s: %d bytes", c.name, len(b))
			}
		}
	}
}

// reads is a File of r's that fails with err in its last MiB.
type reads struct {
	size int64
	err  error
}

func (r reads) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	if r.err != nil && off+int64(len(b)) > r.size-1<<20 {
		return 0, r.err
	}
	n := int(min(int64(len(b)), r.size-off))
	copy(b, bytes.Repeat([]byte("r"), n))
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
func (r reads) Attr() layers.Attr { return layers.Attr{} }
func (r reads) Close() error      { return nil }
