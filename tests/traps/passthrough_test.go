package traps

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

var old = strings.Repeat("old content ", 1000)

// Each way opens the lower file before anything was modified, lets the file come
// up through another descriptor, and writes at the start of it.
var ways = []struct {
	name  string
	flags int
	write func(t *testing.T, s *stack, f *os.File)
}{
	{"writer opened before", os.O_RDWR, func(t *testing.T, s *stack, f *os.File) {
		must(t, os.Truncate(s.Path("f"), int64(len(old)))) // comes up here
		_, err := f.WriteAt([]byte("NEW"), 0)
		must(t, err)
	}},
	{"reader opened before", os.O_RDONLY, func(t *testing.T, s *stack, _ *os.File) {
		w := s.open(t, "f", os.O_RDWR)
		_, err := w.WriteAt([]byte("NEW"), 0)
		must(t, err)
	}},
	{"brought up by chmod", os.O_RDONLY, func(t *testing.T, s *stack, _ *os.File) {
		must(t, os.Chmod(s.Path("f"), 0o600))
		w := s.open(t, "f", os.O_RDWR)
		_, err := w.WriteAt([]byte("NEW"), 0)
		must(t, err)
	}},
	{"store through a mapping made before", os.O_RDWR, func(t *testing.T, s *stack, f *os.File) {
		m, err := unix.Mmap(fd(f), 0, len(old), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		defer func() { must(t, unix.Munmap(m)) }()
		if string(m) != old {
			t.Error("the mapping shows something else")
		}
		must(t, os.Truncate(s.Path("f"), int64(len(old)))) // comes up here
		copy(m, "NEW")
		must(t, unix.Msync(m, unix.MS_SYNC))
	}},
	{"store that is the first modification", os.O_RDWR, func(t *testing.T, _ *stack, f *os.File) {
		m, err := unix.Mmap(fd(f), 0, len(old), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		defer func() { must(t, unix.Munmap(m)) }()
		copy(m, "NEW")
		must(t, unix.Msync(m, unix.MS_SYNC))
	}},
	{"store through a mapping whose descriptor is closed", os.O_RDWR, func(t *testing.T, s *stack, f *os.File) {
		m, err := unix.Mmap(fd(f), 0, len(old), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		defer func() { must(t, unix.Munmap(m)) }()
		must(t, f.Close())
		must(t, os.Truncate(s.Path("f"), int64(len(old))))
		copy(m, "NEW")
		must(t, unix.Msync(m, unix.MS_SYNC))
	}},
}

// A write after a copy-up lands in the upper, whoever opened what before it, and
// is seen through every descriptor and mapping.
func TestWriteAfterCopyUp(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, lower string) {
				put(t, filepath.Join(lower, "f"), old, 0o644)
			}, func(t *testing.T, s *stack) {
				// The lower file itself, whatever becomes of its name.
				low, err := os.Open(filepath.Join(s.lower, "f"))
				must(t, err)
				defer low.Close()
				var before unix.Stat_t
				must(t, unix.Fstat(fd(low), &before))

				reader := s.open(t, "f", os.O_RDONLY)
				seen, err := unix.Mmap(fd(reader), 0, len(old), unix.PROT_READ, unix.MAP_SHARED)
				must(t, err)
				defer func() { must(t, unix.Munmap(seen)) }()
				if string(seen) != old {
					t.Error("the mapping shows something else before")
				}
				w.write(t, s, s.open(t, "f", w.flags))

				want := "NEW" + old[3:]
				got := make([]byte, len(old))
				_, err = reader.ReadAt(got, 0)
				must(t, err)
				for _, c := range []struct {
					what string
					got  []byte
				}{
					{"an old descriptor", got},
					{"an old mapping", bytes.Clone(seen)},
					{"the name", []byte(content(t, s.Path("f")))},
					{"the upper", []byte(content(t, filepath.Join(s.upper, "f")))},
				} {
					if string(c.got) != want {
						t.Errorf("%s shows %.12q...", c.what, c.got)
					}
				}
				var after unix.Stat_t
				must(t, unix.Fstat(fd(low), &after))
				_, err = low.ReadAt(got, 0)
				must(t, err)
				if string(got) != old || before.Mtim != after.Mtim || before.Size != after.Size {
					t.Errorf("the lower file was written to: %.12q...", got)
				}
			})
		})
	}
}

// In overlay mode, nothing at all changes in the lower, its access times included.
func TestLowerStaysAsItIs(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	put(t, filepath.Join(s.lower, "f"), old, 0o644)
	must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
	put(t, filepath.Join(s.lower, "d", "g"), old, 0o644)
	long := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
	for _, p := range []string{"f", "d/g", "d", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(s.lower, p), long, unix.AT_SYMLINK_NOFOLLOW))
	}
	atimes := func() (list []unix.Timespec) {
		for _, p := range []string{"f", "d/g", "d", "."} {
			list = append(list, lstat(t, filepath.Join(s.lower, p)).Atim)
		}
		return list
	}
	s.mount(t, "overlay")
	sh(t, nil, s.Path(), `ls -lR; cat f d/g; echo more >>f; mv d e; rm e/g; cat f`)
	for i, at := range atimes() {
		if at != long[0] {
			t.Errorf("access time %d changed: %v", i, at)
		}
	}
	if got := content(t, s.Path("f")); got != old+"more\n" {
		t.Errorf("f ends in %q", got[len(old):])
	}
	if content(t, filepath.Join(s.lower, "f")) != old || content(t, filepath.Join(s.lower, "d", "g")) != old {
		t.Error("the lower has changed")
	}
}
