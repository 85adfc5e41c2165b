package traps

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A FIFO of a lower is looked at, changed and moved like any file, and nobody
// opens it on the way.
func TestFIFOInLower(t *testing.T) {
	inBothModes(t, func(t *testing.T, lower string) {
		for _, n := range []string{"p", "q", "r"} {
			must(t, unix.Mkfifo(filepath.Join(lower, n), 0o644))
			must(t, unix.Setxattr(filepath.Join(lower, n), "trusted.note", []byte("n"), 0))
			must(t, os.Chown(filepath.Join(lower, n), 1000, 1001))
		}
	}, func(t *testing.T, s *stack) {
		within(t, "stat, chmod, rename and link of a FIFO", func() {
			if st := lstat(t, s.Path("p")); st.Mode != unix.S_IFIFO|0o644 {
				t.Errorf("mode %o", st.Mode)
			}
			sh(t, nil, s.Path(), "ls -l; getfattr -d p")
			must(t, os.Chmod(s.Path("p"), 0o600))
			must(t, os.Rename(s.Path("q"), s.Path("q2")))
			must(t, os.Link(s.Path("r"), s.Path("r2")))
			must(t, unix.Setxattr(s.Path("r"), "trusted.more", []byte("m"), 0))
			must(t, os.Chtimes(s.Path("r2"), past, past))
		})
		for name, mode := range map[string]uint32{"p": 0o600, "q2": 0o644, "r": 0o644, "r2": 0o644} {
			st := lstat(t, s.Path(name))
			v := make([]byte, 8)
			n, err := unix.Lgetxattr(s.Path(name), "trusted.note", v)
			if st.Mode != unix.S_IFIFO|mode || st.Uid != 1000 || st.Gid != 1001 || err != nil || string(v[:max(n, 0)]) != "n" {
				t.Errorf("%s: mode %o of %d:%d, xattr %q, %v", name, st.Mode, st.Uid, st.Gid, v, err)
			}
		}
		if a, b := lstat(t, s.Path("r")), lstat(t, s.Path("r2")); a.Ino != b.Ino || a.Nlink != 2 {
			t.Errorf("the link is another file: %v %v", a.Ino, b.Ino)
		}
		// It works as one: a program on this mount wakes another.
		within(t, "a word through the FIFO", func() {
			if got := sh(t, nil, s.Path(), "cat p & echo word >p; wait"); got != "word\n" {
				t.Errorf("got %q", got)
			}
		})
	})
}

// A regular file that was looked up and is a FIFO when it is opened: the open
// says so or opens the FIFO of the caller, and the daemon waits for nobody.
func TestFIFOSwappedIn(t *testing.T) {
	inBothModes(t, func(t *testing.T, lower string) {
		put(t, filepath.Join(lower, "f"), "regular", 0o644)
		put(t, filepath.Join(lower, "g"), "regular", 0o644)
		put(t, filepath.Join(lower, "other"), "other", 0o644)
	}, func(t *testing.T, s *stack) {
		for _, n := range []string{"f", "g"} {
			if st := lstat(t, s.Path(n)); st.Mode&unix.S_IFMT != unix.S_IFREG {
				t.Fatalf("mode %o", st.Mode)
			}
			must(t, os.Remove(filepath.Join(s.lower, n)))
			must(t, unix.Mkfifo(filepath.Join(s.lower, n), 0o644))
		}
		within(t, "open of a FIFO that was a file", func() {
			for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
				fd, err := unix.Open(s.Path("f"), flags|unix.O_NONBLOCK, 0)
				if err == nil {
					if st := fstat(t, fd); st.Mode&unix.S_IFMT != unix.S_IFIFO {
						t.Errorf("opened as %o", st.Mode)
					}
					unix.Close(fd)
				} else if !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENXIO) {
					t.Errorf("open: %v", err)
				}
			}
			err := os.Truncate(s.Path("g"), 0)
			if err == nil {
				t.Error("a FIFO was truncated")
			}
		})
		within(t, "another file", func() {
			if got := content(t, s.Path("other")); got != "other" {
				t.Errorf("got %q", got)
			}
			put(t, s.Path("new"), "new", 0o644)
		})
		if st := lstat(t, filepath.Join(s.lower, "f")); st.Mode != unix.S_IFIFO|0o644 {
			t.Errorf("the FIFO in the lower is %o now", st.Mode)
		}
	})
}

func fstat(t *testing.T, fd int) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return st
}
