package seed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// elfFile is a program with nothing in it but a build-id behind another note.
func elfFile(id []byte) []byte {
	le := binary.LittleEndian
	note := func(name string, typ uint32, desc []byte) []byte {
		b := le.AppendUint32(nil, uint32(len(name)))
		b = le.AppendUint32(b, uint32(len(desc)))
		b = le.AppendUint32(b, typ)
		return append(append(b, name...), desc...)
	}
	notes := append(note("GNU\x00", 1, make([]byte, 16)), note("GNU\x00", 3, id)...)
	b := make([]byte, 64+2*56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	le.PutUint32(b[64:], 1) // PT_LOAD
	ph := b[64+56:]
	le.PutUint32(ph, 4)
	le.PutUint64(ph[8:], uint64(len(b)))
	le.PutUint64(ph[32:], uint64(len(notes)))
	le.PutUint64(ph[48:], 4)
	return append(b, notes...)
}

func idOf(b []byte) ([]byte, error) { return buildID(bytes.NewReader(b).ReadAt) }

var someID = []byte("0123456789abcdefghij")

func TestBuildID(t *testing.T) {
	whole := elfFile(someID)
	if id, err := idOf(whole); err != nil || !bytes.Equal(id, someID) {
		t.Errorf("build-id %q, %v", id, err)
	}
	// Cut off or with a byte changed anywhere, it is some answer, and no panic.
	for i := range whole {
		if id, err := idOf(whole[:i]); err == nil && !bytes.Equal(id, someID) {
			t.Errorf("cut off at %d: %q", i, id)
		}
		for _, v := range []byte{0, 0x7f, 0xff} {
			bad := bytes.Clone(whole)
			bad[i] = v
			_, _ = idOf(bad)
		}
	}
	for _, b := range [][]byte{nil, []byte("#!/bin/sh\n"), bytes.Repeat([]byte{0xff}, 9000)} {
		if _, err := idOf(b); !errors.Is(err, errNoBuildID) {
			t.Errorf("%.10q: %v", b, err)
		}
	}
	// What CRIU has recorded is in words.
	if !sameBuild([]byte("12345678"), []byte("12345678")) || !sameBuild([]byte("123456789"), []byte("12345678")) ||
		sameBuild([]byte("12345678"), []byte("1234567x")) || sameBuild(nil, []byte("1234")) || sameBuild([]byte("123456789012"), []byte("1234")) {
		t.Error("build-ids are compared otherwise than CRIU does")
	}
}

func FuzzBuildID(f *testing.F) {
	f.Add(elfFile(someID))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = idOf(b) })
}

// withProgram is the job with a program of the given build.
func withProgram(content string) (*fake, Seed) {
	f := newFake()
	f.data["home/v/prog"] = content
	f.nodes["home/v/prog"] = layers.Attr{
		Known: layers.KnownOwner | layers.KnownTimes | layers.KnownSize, Mode: unix.S_IFREG | 0o755,
		Size: int64(len(content)), Mtime: layers.Time{Sec: 12345},
	}
	s := jobSeed()
	s.Entries = append(s.Entries, Entry{Path: "home/v/prog", Mode: unix.S_IFREG | 0o755, ModeKnown: true, Size: int64(len(content)), SizeKnown: true, BuildID: someID})
	return f, s
}

func TestAnotherBuild(t *testing.T) {
	f, s := withProgram(string(elfFile(someID)))
	mustNew(t, Config{Seed: s, Inner: f})
	other := strings.Replace(string(elfFile(someID)), "0123", "3210", 1)
	for content, want := range map[string]string{
		other:                           "build-id 33323130",
		strings.Repeat("x", len(other)): "no build-id",
	} {
		f, s = withProgram(content)
		_, err := New(t.Context(), Config{Seed: s, Inner: f, Logger: quiet})
		var mm *MismatchError
		if !errors.As(err, &mm) || len(mm.Files) != 1 || !strings.HasPrefix(mm.Files[0].What, want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestVerify: what changed is refused, named or nobody's business.
func TestVerify(t *testing.T) {
	change := func() *fake {
		f := newFake()
		f.data["home/u/f"] = "hello, world"
		a := f.nodes["home/u/f"]
		a.Size = 12
		f.nodes["home/u/f"] = a
		delete(f.nodes, "home/u/log")
		return f
	}
	if _, err := New(t.Context(), Config{Seed: jobSeed(), Inner: change(), Logger: quiet}); err == nil {
		t.Error("strict: made a layer of what changed")
	}
	for _, v := range []Verify{Warn, Off} {
		l := mustNew(t, Config{Seed: jobSeed(), Inner: change(), Verify: v})
		if got := read(t, l, "home/u/f"); got != "hello, world" {
			t.Errorf("%d: read %q", v, got)
		}
		if _, err := l.Stat(t.Context(), "home/u/log"); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%d: a file that is gone: %v", v, err)
		}
		if got := names(t, l, "home/u"); strings.Join(got, " ") != "f g link" {
			t.Errorf("%d: home/u lists %q", v, got)
		}
		changed := l.Changed()
		if v == Off && len(changed) != 0 || v == Warn && (len(changed) != 2 || changed[0].What != "size 12, was 5" || changed[1].What != "missing") {
			t.Errorf("%d: changed %v", v, changed)
		}
	}
}

// TestVerifyLater: the same for a source that was away when the layer was made.
func TestVerifyLater(t *testing.T) {
	for _, v := range []Verify{Strict, Warn, Off} {
		f := newFake()
		a := f.nodes["home/u/f"]
		a.Size = 4
		f.nodes["home/u/f"], f.data["home/u/f"] = a, "hell"
		f.offline = true
		l := mustNew(t, Config{Seed: jobSeed(), Inner: f, Verify: v})
		f.offline = false
		_, err := l.Open(t.Context(), "home/u/f", nil)
		if v == Strict && !errors.Is(err, layers.ErrStale) || v != Strict && err != nil {
			t.Errorf("%d: a file that changed: %v", v, err)
		}
	}
}

// TestModifiedSince: same size and mode, but written to after the dump.
func TestModifiedSince(t *testing.T) {
	for since, bad := range map[layers.Time]bool{
		{}: false, {Sec: 12345}: false, {Sec: 12345, Nsec: 5}: false, {Sec: 12344, Nsec: 999999999}: true,
	} {
		_, err := New(t.Context(), Config{Seed: jobSeed(), Inner: newFake(), Since: since, Logger: quiet})
		var mm *MismatchError
		if errors.As(err, &mm) != bad || bad && (len(mm.Files) != 2 || mm.Files[0].What != "modified at 1970-01-01 03:25:45, after the dump") {
			t.Errorf("since %v: %v", since, err)
		}
	}
	l := mustNew(t, Config{Seed: jobSeed(), Inner: newFake()})
	if got := l.ModifiedSince(layers.Time{Sec: 12344}); len(got) != 2 || got[0] != "home/u/f" {
		t.Errorf("modified: %q", got)
	}
	if got := l.ModifiedSince(layers.Time{Sec: 12346}); len(got) != 0 {
		t.Errorf("modified: %q", got)
	}
}

// TestTwin: a program that is here as well is read here, for as long as it is the same.
func TestTwin(t *testing.T) {
	content := string(elfFile(someID)) + "body"
	for _, c := range []struct {
		name   string
		change func(t *testing.T, path string)
		twin   bool
	}{
		{"same", func(*testing.T, string) {}, true},
		{"another build", func(t *testing.T, p string) {
			writeFile(t, p, strings.Replace(content, "0123", "3210", 1))
		}, false},
		{"longer", func(t *testing.T, p string) { writeFile(t, p, content+"x") }, false},
		{"newer", func(t *testing.T, p string) { chtimes(t, p, 12346) }, false},
		{"absent", func(t *testing.T, p string) { must(t, os.Remove(p)) }, false},
		{"a symlink", func(t *testing.T, p string) {
			must(t, os.Rename(p, p+".real"))
			must(t, os.Symlink("prog.real", p))
		}, false},
		{"a FIFO", func(t *testing.T, p string) {
			must(t, os.Remove(p))
			must(t, unix.Mkfifo(p, 0o755))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "home/v/prog")
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			writeFile(t, path, content)
			c.change(t, path)
			f, s := withProgram(content)
			l := mustNew(t, Config{Seed: s, Inner: f, Local: root})
			defer l.Close()
			if twins, bytes := l.Twins(); (len(twins) == 1 && twins[0] == "home/v/prog" && bytes == int64(len(content))) != c.twin {
				t.Errorf("twins: %q, %d bytes", twins, bytes)
			}
			opens := f.opens
			if got := readAll(t, l, "home/v/prog"); got != content {
				t.Errorf("read %d bytes, want %d", len(got), len(content))
			}
			if (f.opens == opens) != c.twin {
				t.Errorf("the source was asked %d times", f.opens-opens)
			}
		})
	}
}

// TestTwinChanges: an upgrade puts another file in its place, which does not matter; a
// change in place has the rest fetched.
func TestTwinChanges(t *testing.T) {
	content := string(elfFile(someID)) + "body"
	for name, change := range map[string]func(t *testing.T, path string){
		"upgrade": func(t *testing.T, p string) {
			writeFile(t, p+".new", "another program")
			must(t, os.Rename(p+".new", p))
		},
		"in place": func(t *testing.T, p string) {
			must(t, os.WriteFile(p, bytes.Repeat([]byte{'x'}, len(content)), 0o755))
		},
		"in place, its time put back": func(t *testing.T, p string) {
			writeFile(t, p, strings.Repeat("x", len(content)))
		},
		"cut off": func(t *testing.T, p string) { must(t, os.Truncate(p, 10)) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "home/v/prog")
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			writeFile(t, path, content)
			f, s := withProgram(content)
			l := mustNew(t, Config{Seed: s, Inner: f, Local: root})
			defer l.Close()
			file, err := l.Open(t.Context(), "home/v/prog", nil)
			must(t, err)
			defer file.Close()
			opens := f.opens
			change(t, path)
			b := make([]byte, len(content))
			if n, err := file.ReadAt(t.Context(), b, 0); n != len(b) || string(b) != content {
				t.Errorf("read %d bytes, %v: %q", n, err, b)
			}
			if name == "upgrade" != (f.opens == opens) {
				t.Errorf("the source was asked %d times", f.opens-opens)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func chtimes(t *testing.T, path string, sec int64) {
	t.Helper()
	must(t, os.Chtimes(path, time.Unix(sec, 0), time.Unix(sec, 0)))
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o755))
	chtimes(t, path, 12345)
}

func readAll(t *testing.T, l layers.Layer, p layers.Path) string {
	t.Helper()
	f, err := l.Open(t.Context(), p, nil)
	must(t, err)
	defer f.Close()
	a := f.Attr()
	b := make([]byte, a.Size)
	n, err := f.ReadAt(t.Context(), b, 0)
	must(t, err)
	return string(b[:n])
}
