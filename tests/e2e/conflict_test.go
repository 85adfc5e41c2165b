package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// resolve runs 'migratefs resolve' and fails the test unless it ends with the code.
func resolve(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, err := exec.Command(testbed.Build(t), append([]string{"resolve"}, args...)...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("resolve %q ends with %d, want %d: %s", args, got, code, out)
	}
	return string(out)
}

// change gives the file on the source other content, of the same length, and a newer
// time, at which it stays.
func (s *source) change(t *testing.T, name string) []byte {
	t.Helper()
	path := filepath.Join(s.dir, name)
	b, err := os.ReadFile(path)
	must(t, err)
	for i := range b {
		b[i] ^= 0x55
	}
	must(t, os.WriteFile(path, b, 0o644))
	when := time.Now().Add(-30 * time.Minute)
	must(t, os.Chtimes(path, when, when))
	return b
}

// stale fails the test unless the bytes at off are ESTALE.
func stale(t *testing.T, when, path string, off int64) {
	t.Helper()
	if b, err := readAt(path, off, 4096); !errors.Is(err, unix.ESTALE) {
		t.Errorf("%s: %s at %d: %d bytes, %v; want ESTALE", when, filepath.Base(path), off, len(b), err)
	}
}

func TestConflict(t *testing.T) {
	const size, at = 4 << 20, 1 << 20
	mine := bytes.Repeat([]byte("mine"), 1024)
	s := newSource(t)
	begin := func(name string) *testbed.Mounted {
		s.put(t, name, size)
		m := s.mount(t, ",fill=off,prefetch=off")
		f, err := os.OpenFile(m.Path(name), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt(mine, at)
		must(t, err)
		must(t, f.Close())
		must(t, os.Chmod(m.Path(name), 0o640))
		return m
	}
	here := func(when, path string) {
		t.Helper()
		if b, err := readAt(path, at, len(mine)); err != nil || !bytes.Equal(b, mine) {
			t.Errorf("%s: what was written is %.20q, %v", when, b, err)
		}
	}

	t.Run("keep what is here", func(t *testing.T) {
		m := begin("keep")
		defer m.Unmount()
		old, err := os.Stat(filepath.Join(s.dir, "keep"))
		must(t, err)
		if out := resolve(t, 0, "--list", m.Path("")); out != "" {
			t.Errorf("before there is any: %s", out)
		}
		s.change(t, "keep")
		stale(t, "changed", m.Path("keep"), 3<<20)
		here("changed", m.Path("keep"))
		// A time that is put back brings no bytes back.
		must(t, os.Chtimes(filepath.Join(s.dir, "keep"), old.ModTime(), old.ModTime()))
		stale(t, "with its old time", m.Path("keep"), 2<<20)
		m.Unmount()
		m = s.mount(t, ",prefetch=off")
		stale(t, "after a remount", m.Path("keep"), 2<<20)
		here("after a remount", m.Path("keep"))
		for _, want := range []string{"changed on the source", `"keep"`, "4.0 KiB written here"} {
			if out := resolve(t, 3, "--list", m.Path("keep")); !strings.Contains(out, want) {
				t.Errorf("the list does not say %q: %s", want, out)
			}
		}
		if out := resolve(t, 3, "--keep-local", m.Path("keep")); !strings.Contains(out, "--yes") {
			t.Errorf("without --yes: %s", out)
		}
		stale(t, "without --yes", m.Path("keep"), 2<<20)
		refusedToUsers(t, m.Path("keep"))

		resolve(t, 0, "--keep-local", "--yes", m.Path("keep"))
		want := make([]byte, size)
		copy(want[at:], mine)
		for _, path := range []string{m.Path("keep"), filepath.Join(s.upper(), "keep")} {
			s.filled(t, "keep")
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v: not what was written among zeros", path, len(got), err)
			}
		}
		resolve(t, 0, "--list", m.Path(""))
		resolve(t, 1, "--keep-local", m.Path("keep"))
	})

	t.Run("take the source's", func(t *testing.T) {
		m := begin("take")
		defer func() { m.Unmount() }()
		must(t, os.Rename(m.Path("take"), m.Path("taken")))
		theirs := s.change(t, "take")
		stale(t, "changed", m.Path("taken"), 3<<20)
		f, err := os.Open(m.Path("taken"))
		must(t, err)
		if out := resolve(t, 1, "--take-source", m.Path("taken")); !strings.Contains(out, "open") {
			t.Errorf("while it is open: %s", out)
		}
		f.Close()
		here("while it is open", m.Path("taken"))
		resolve(t, 0, "--take-source", "--aside", "was here", m.Path("taken"))
		check := func(when string) {
			t.Helper()
			if got, err := os.ReadFile(m.Path("taken")); err != nil || !bytes.Equal(got, theirs) {
				t.Errorf("%s: %d bytes, %v: not what the source has", when, len(got), err)
			}
			aside := make([]byte, size)
			copy(aside[at:], mine)
			got, err := os.ReadFile(m.Path("was here"))
			for _, part := range [][2]int{{at, at + len(mine)}} {
				if err != nil || len(got) != size || !bytes.Equal(got[part[0]:part[1]], mine) {
					t.Fatalf("%s: what was here is not kept: %d bytes, %v", when, len(got), err)
				}
			}
			if st, err := os.Stat(m.Path("taken")); err != nil || st.Mode() != 0o640 {
				t.Errorf("%s: %v, %v", when, st.Mode(), err)
			}
		}
		check("at once")
		m.Unmount()
		m = s.mount(t, "")
		s.filled(t, "taken")
		check("filled, after a remount")
		names, err := os.ReadDir(m.Path(""))
		must(t, err)
		listed := false
		for _, e := range names {
			listed = listed || e.Name() == "was here"
		}
		if !listed {
			t.Error("what was here is not listed")
		}
	})

	t.Run("gone from the source", func(t *testing.T) {
		m := begin("gone")
		defer m.Unmount()
		must(t, os.Remove(filepath.Join(s.dir, "gone")))
		stale(t, "gone", m.Path("gone"), 3<<20)
		here("gone", m.Path("gone"))
		if out := resolve(t, 3, "--list", "--json", m.Path("")); !strings.Contains(out, `"path":"gone"`) {
			t.Errorf("the list: %s", out)
		}
		if out := resolve(t, 1, "--take-source", "--discard", m.Path("gone")); !strings.Contains(out, "--keep-local") {
			t.Errorf("there is nothing to take: %s", out)
		}
		here("after that", m.Path("gone"))
		resolve(t, 0, "--keep-local", "--yes", m.Path("gone"))
		here("kept", m.Path("gone"))
	})
}

// refusedToUsers fails the test unless a user who may write the file is refused.
func refusedToUsers(t *testing.T, path string) {
	t.Helper()
	must(t, os.Chown(path, 1000, 1000))
	cmd := exec.Command(testbed.Build(t), "resolve", "--keep-local", "--yes", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("a user resolves a conflict: %s", out)
	}
}
