package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// command runs migratefs and fails the test unless it ends with the code.
func command(t *testing.T, code int, args ...string) string {
	t.Helper()
	out, err := exec.Command(testbed.Build(t), args...).CombinedOutput()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("migratefs %q ends with %d, want %d: %s", args, got, code, out)
	}
	return string(out)
}

// ending is what wait, drain and detach print with --json.
type ending struct {
	Migration struct {
		State     string
		Here      amount
		Missing   amount
		AtRisk    amount `json:"at_risk"`
		Left      int
		LostReads int `json:"lost_reads"`
		Lost      []struct {
			Path, Process, Why string
			Pid                int
		}
	}
	Missing []struct {
		Path  string
		Bytes int64
		Why   string
	}
}

type amount struct{ Files, Bytes int64 }

// ends runs a command with --json.
func ends(t *testing.T, code int, args ...string) (e ending) {
	t.Helper()
	out := command(t, code, append(args, "--json")...)
	line, _, _ := strings.Cut(out[strings.Index(out, "{"):], "\n")
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return e
}

// moving is a source with a tree of some size.
func moving(t *testing.T) (s *source) {
	t.Helper()
	s = newSource(t)
	for _, d := range []string{"d/deep/er", "empty", "other"} {
		must(t, os.MkdirAll(filepath.Join(s.dir, d), 0o755))
	}
	s.put(t, "big", 5<<20+17)
	s.put(t, "d/a", 300<<10)
	s.put(t, "d/deep/er/b", 4000)
	s.put(t, "other/c", 70<<10)
	s.put(t, "read", 1<<20)
	must(t, os.WriteFile(filepath.Join(s.dir, "nothing"), nil, 0o600))
	must(t, os.Symlink("d/a", filepath.Join(s.dir, "link")))
	return s
}

// TestDetach: all of a source comes over, it is let go of, and whatever becomes of it
// from then on, nobody notices; then what is here is plain directories.
func TestDetach(t *testing.T) {
	s := moving(t)
	m := s.mount(t, "")
	reader, err := os.Open(m.Path("read"))
	must(t, err)
	defer reader.Close()
	writer, err := os.OpenFile(m.Path("big"), os.O_RDWR, 0)
	must(t, err)
	defer writer.Close()
	_, err = writer.WriteAt([]byte("written here"), 3<<20)
	must(t, err)
	must(t, os.Remove(m.Path("other/c")))
	must(t, os.WriteFile(m.Path("other/new"), []byte("made here"), 0o600))
	want := testbed.Snapshot(t, m.Path(""), testbed.Usual|testbed.Mtime)

	if out := command(t, 3, "detach", m.Path("")); !strings.Contains(out, "everything the source has") ||
		!strings.Contains(out, `"/d/a"`) || !strings.Contains(out, "migratefs drain") {
		t.Errorf("detach, with something missing, says: %s", out)
	}
	if e := ends(t, 3, "detach", "--dry-run", m.Path("")); e.Migration.State == "detached" || e.Migration.Missing.Files == 0 || len(e.Missing) == 0 {
		t.Errorf("refused, it is %+v", e)
	}
	command(t, 0, "drain", m.Path(""))
	e := ends(t, 0, "wait", "--complete", "--timeout=10m", m.Path(""))
	if e.Migration.State != "complete" || e.Migration.Missing != (amount{}) || e.Migration.Here.Bytes < 6<<20 {
		t.Errorf("complete is %+v", e)
	}
	command(t, 0, "detach", m.Path(""))
	testbed.Until(t, "the connections to end", func() bool { return s.link.Open() == 0 })

	// The source goes, and comes back as another.
	up, down := s.link.Bytes()
	must(t, os.RemoveAll(s.dir))
	must(t, os.MkdirAll(filepath.Join(s.dir, "d"), 0o755))
	for _, name := range []string{"big", "d/a", "read", "never there"} {
		must(t, os.WriteFile(filepath.Join(s.dir, name), []byte("of another file"), 0o644))
	}
	same := func(when string) {
		t.Helper()
		testbed.Same(t, "before", want, when, testbed.Snapshot(t, m.Path(""), testbed.Usual|testbed.Mtime))
		for _, name := range []string{"never there", "d/nor there", "other/c"} {
			if _, err := os.Stat(m.Path(name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s: %v", when, name, err)
			}
		}
		command(t, 0, "wait", "--complete", m.Path(""))
	}
	same("detached")
	b := make([]byte, 1<<20)
	if n, err := reader.ReadAt(b, 0); n != len(b) || err != nil {
		t.Errorf("who had a file open reads %d bytes of it, %v", n, err)
	}
	_, err = writer.WriteAt([]byte("written after"), 1<<20)
	must(t, err)
	must(t, os.Mkdir(m.Path("d/deep/new"), 0o755))
	must(t, os.WriteFile(m.Path("d/deep/new/file"), []byte("after"), 0o644))
	must(t, os.Rename(m.Path("d/deep/er"), m.Path("d/moved")))
	must(t, reader.Close())
	must(t, writer.Close())
	want = testbed.Snapshot(t, m.Path(""), testbed.Usual|testbed.Mtime)
	m.Unmount()
	if out := command(t, 0, "check", s.upper()); strings.Contains(out, "detached") {
		t.Errorf("check finds what detach has left: %s", out)
	}
	m = s.mount(t, "")
	same("mounted again")
	if e := ends(t, 0, "detach", m.Path("")); e.Migration.State != "detached" {
		t.Errorf("detached again it is %+v", e)
	}
	m.Unmount()
	if u, d := s.link.Bytes(); u != up || d != down {
		t.Errorf("%d and %d bytes went to the source and back after the detach", u-up, d-down)
	}

	command(t, 0, "settle", s.upper())
	testbed.Same(t, "the mount", want, "the plain directory", testbed.Snapshot(t, s.upper(), testbed.Usual|testbed.Mtime))
	if _, err := os.Lstat(s.work()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work directory: %v", err)
	}
	command(t, 0, "settle", s.upper())
}

// TestDetachPart: what is left on the source is EIO and never anything else, can be
// replaced and removed, and is gone when what came is settled.
func TestDetachPart(t *testing.T) {
	s := moving(t)
	// A lower underneath, with files of the same names.
	below := testbed.TempDir(t)
	must(t, os.MkdirAll(filepath.Join(below, "d"), 0o755))
	for _, name := range []string{"big", "read", "d/a", "d/own"} {
		must(t, os.WriteFile(filepath.Join(below, name), []byte("this host's"), 0o644))
	}
	options := "lowerdir=" + s.sshd.Target(s.dir) + ":" + below + ",upperdir=" + s.upper()
	mount := func() *testbed.Mounted {
		return testbed.Mount(t, options, s.mnt(), testbed.MountConfig{Env: s.sshd.Env()})
	}
	m := mount()
	must(t, os.Chmod(m.Path("read"), 0o640)) // changed: it belongs to what has to be here
	command(t, 3, "detach", m.Path(""), "d")
	command(t, 0, "drain", m.Path("d"))
	command(t, 0, "detach", m.Path(""), "d")
	s.sshd.Stop()
	a, err := os.ReadFile(filepath.Join(s.dir, "d/a"))
	must(t, err)
	for _, when := range []string{"detached", "mounted again"} {
		if when != "detached" {
			m.Unmount()
			m = mount()
		}
		if got, err := os.ReadFile(m.Path("d/a")); err != nil || !bytes.Equal(got, a) {
			t.Errorf("%s: what came is %d bytes, %v", when, len(got), err)
		}
		if got, err := os.ReadFile(m.Path("d/own")); string(got) != "this host's" {
			t.Errorf("%s: what this host alone has is %q, %v", when, got, err)
		}
		for _, name := range []string{"big", "other/c", "link"} {
			if got, err := os.ReadFile(m.Path(name)); !errors.Is(err, unix.EIO) {
				t.Errorf("%s: %s, which was left, is %q, %v", when, name, got, err)
			}
		}
		if fi, err := os.Lstat(m.Path("big")); err != nil || fi.Size() != 5<<20+17 {
			t.Errorf("%s: what was left is %v, %v", when, fi, err)
		}
		for _, err := range []error{
			os.Chmod(m.Path("big"), 0o600), os.Rename(m.Path("big"), m.Path("new name")), os.Truncate(m.Path("big"), 100),
			os.WriteFile(m.Path("other/new"), nil, 0o644),
		} {
			if !errors.Is(err, unix.EIO) {
				t.Errorf("%s: a change of what was left: %v", when, err)
			}
		}
		if names := list(t, m.Path("")); !strings.Contains(names, "big d empty link nothing other read") {
			t.Errorf("%s: it lists %s", when, names)
		}
		must(t, os.WriteFile(m.Path("d/made "+when), []byte("new"), 0o644))
	}
	must(t, os.Remove(m.Path("link")))
	must(t, os.WriteFile(m.Path("big"), []byte("replaced"), 0o644)) // with O_TRUNC
	if got, err := os.ReadFile(m.Path("big")); string(got) != "replaced" {
		t.Errorf("what was replaced is %q, %v", got, err)
	}
	if out := command(t, 1, "settle", m.Path("")); !strings.Contains(out, "migratefs umount") {
		t.Errorf("settle of what is mounted says: %s", out)
	}
	m.Unmount()
	command(t, 0, "settle", s.upper())
	if names := list(t, s.upper()); names != "big d read" {
		t.Errorf("settled it has %s", names)
	}
	if names := list(t, filepath.Join(s.upper(), "d")); names != "a deep made detached made mounted again" {
		t.Errorf("settled d has %s", names)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// TestDetachForced: what is lost is named, and stays to be decided about.
func TestDetachForced(t *testing.T) {
	s := moving(t)
	m := s.mount(t, ",fill=off,prefetch=off,hard")
	mine := strings.Repeat("written here", 1024)[:8192]
	f, err := os.OpenFile(m.Path("big"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(mine), 3<<20)
	must(t, err)
	must(t, f.Close())
	s.sshd.Kill()
	s.link.Refuse(true)
	s.link.Cut()
	command(t, 3, "detach", "--changed", m.Path(""))
	if out := command(t, 0, "detach", "--changed", "--force", m.Path("")); !strings.Contains(out, "lost with the source") || !strings.Contains(out, `"/big"`) {
		t.Errorf("forced, it says: %s", out)
	}
	if b, err := readAt(m.Path("big"), 3<<20, len(mine)); string(b) != mine {
		t.Errorf("what was written here is %q, %v", b, err)
	}
	if b, err := readAt(m.Path("big"), 0, 12); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ESTALE) {
		t.Errorf("what is lost is %q, %v", b, err)
	}
	if out := resolve(t, 3, "--list", m.Path("")); !strings.Contains(out, "left on the source") {
		t.Errorf("what is to be decided: %s", out)
	}
	m.Unmount()
	command(t, 3, "settle", s.upper())
	m = s.mount(t, "")
	resolve(t, 0, "--keep-local", "--yes", m.Path("big"))
	s.filled(t, "big")
	m.Unmount()
	command(t, 0, "settle", s.upper())
	if b, err := readAt(filepath.Join(s.upper(), "big"), 3<<20, len(mine)); string(b) != mine {
		t.Errorf("settled, what was written here is %q, %v", b, err)
	}
}

// TestSourceDiesEarly: what is here works, what is not is EIO, which is told, and when
// the source is back it goes on.
func TestSourceDiesEarly(t *testing.T) {
	s := moving(t)
	m := s.mount(t, ",timeout=2,prefetch=off")
	// On a slow machine the source may take longer than it is waited for here.
	testbed.Until(t, "a part of one file and all of another", func() bool {
		_, err := readAt(m.Path("d/a"), 0, 4096)
		_, cerr := os.ReadFile(m.Path("other/c"))
		return err == nil && cerr == nil
	})
	s.sshd.Kill()
	s.link.Refuse(true)
	s.link.Cut()
	if _, err := os.ReadFile(m.Path("other/c")); err != nil {
		t.Errorf("what is here: %v", err)
	}
	out, err := exec.Command("dd", "if="+m.Path("d/a"), "of=/dev/null", "bs=4096", "skip=50", "count=1").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("what is not here: %v, %s", err, out)
	}
	e := ends(t, 3, "wait", "--complete", "--timeout=1s", m.Path(""))
	lost := e.Migration.Lost // the newest last; before it what was read too early
	if e.Migration.LostReads == 0 || len(lost) == 0 || lost[len(lost)-1].Path != "d/a" || lost[len(lost)-1].Process != "dd" {
		t.Errorf("what was lost is told as %+v", e)
	}
	testbed.Until(t, "the log to say which file of which process", func() bool {
		log := m.Log()
		return strings.Contains(log, "path=d/a") && strings.Contains(log, "process=dd")
	})
	s.link.Refuse(false)
	s.sshd.Start()
	command(t, 0, "wait", "--complete", "--timeout=10m", m.Path(""))
	if got, err := os.ReadFile(m.Path("d/a")); err != nil || len(got) != 300<<10 {
		t.Errorf("with the source back: %d bytes, %v", len(got), err)
	}
	m.Unmount()
}

// moveAbout moves directories of moving in the mount m before anything of them has come,
// also to where the source has nothing, and to a name that it has.
func moveAbout(t *testing.T, m *testbed.Mounted) {
	t.Helper()
	must(t, os.MkdirAll(m.Path("here/below"), 0o755))
	must(t, os.Rename(m.Path("d/deep"), m.Path("here/below/deep")))
	must(t, os.Rename(m.Path("d"), m.Path("here/moved")))
	must(t, os.Remove(m.Path("empty")))
	must(t, os.Rename(m.Path("other"), m.Path("empty")))
}

// TestDetachMoved: what lies in directories that were moved here is brought, wherever they
// are now.
func TestDetachMoved(t *testing.T) {
	s := moving(t)
	m := s.mount(t, ",fill=off,prefetch=off")
	moveAbout(t, m)
	if e := ends(t, 3, "detach", "--dry-run", m.Path("")); e.Migration.Missing.Files < 7 {
		t.Errorf("with nothing here, this is missing: %+v", e)
	}
	command(t, 0, "drain", m.Path(""))
	command(t, 0, "detach", m.Path(""))
	want := snapshotOf(t, s, map[string]string{
		"big": "big", "read": "read", "here/moved/a": "d/a", "here/below/deep/er/b": "d/deep/er/b", "empty/c": "other/c",
	})
	s.sshd.Stop()
	want(m.Path(""), "detached")
	m.Unmount()
	m = s.mount(t, "")
	want(m.Path(""), "mounted again")
	m.Unmount()
	// What is mounted in the upper is not its own, whatever it looks like.
	over := filepath.Join(s.upper(), "here/below")
	must(t, unix.Mount("foreign", over, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(over, unix.MNT_DETACH) })
	whiteout := filepath.Join(over, "whiteout")
	must(t, unix.Mknod(whiteout, unix.S_IFCHR, 0))
	if out := command(t, 1, "settle", s.upper()); !strings.Contains(out, "here/below") || !strings.Contains(out, "unmount") {
		t.Errorf("with something mounted in it, settle says: %s", out)
	}
	if _, err := os.Lstat(whiteout); err != nil {
		t.Errorf("what is mounted in the upper: %v", err)
	}
	must(t, unix.Unmount(over, 0))
	command(t, 0, "settle", s.upper())
	want(s.upper(), "settled")
}

// TestDetachMovedPart: paths are those in the mount, not where the source has what lies
// there.
func TestDetachMovedPart(t *testing.T) {
	s := moving(t)
	m := s.mount(t, ",fill=off,prefetch=off")
	moveAbout(t, m)
	// What is not there is not a scope that is all here.
	if out := command(t, 1, "detach", m.Path(""), "hree"); !strings.Contains(out, "hree") || !strings.Contains(out, "no such file") {
		t.Errorf("detach with a path that is not there says: %s", out)
	}
	command(t, 1, "detach", m.Path(""), s.local)
	must(t, os.Symlink("here", m.Path("way")))
	for _, path := range []string{"way/moved", "here", "empty"} {
		if e := ends(t, 3, "detach", "--dry-run", m.Path(""), path); e.Migration.Missing.Files == 0 {
			t.Errorf("of %s, with nothing here, nothing is missing", path)
		}
		command(t, 0, "drain", m.Path(path))
	}
	command(t, 0, "detach", m.Path(""), "way/moved", m.Path("here"), "empty")
	want := snapshotOf(t, s, map[string]string{
		"here/moved/a": "d/a", "here/below/deep/er/b": "d/deep/er/b", "empty/c": "other/c",
	})
	s.sshd.Stop()
	want(m.Path(""), "detached")
	if b, err := os.ReadFile(m.Path("big")); !errors.Is(err, unix.EIO) {
		t.Errorf("what was left is %d bytes, %v", len(b), err)
	}
}

// snapshotOf reads files of the source, and returns what compares those in a directory,
// by the names that they have there, with them.
func snapshotOf(t *testing.T, s *source, names map[string]string) func(dir, when string) {
	t.Helper()
	was := map[string][]byte{}
	for name, there := range names {
		b, err := os.ReadFile(filepath.Join(s.dir, there))
		must(t, err)
		was[name] = b
	}
	return func(dir, when string) {
		t.Helper()
		for name, b := range was {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %s is %d bytes of %d, %v", when, name, len(got), len(b), err)
			}
		}
	}
}
