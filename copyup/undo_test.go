package copyup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// undoBed is an upper, a lower and its trash.
type undoBed struct {
	t            *testing.T
	dir          string
	upper, lower int
	Undo
	made []layers.Path
}

func newUndoBed(t *testing.T) *undoBed {
	t.Helper()
	b := &undoBed{t: t, dir: t.TempDir()}
	for _, d := range []string{"upper", "lower/.migratefs/trash", "out"} {
		must(t, os.MkdirAll(b.at(d), 0o755))
	}
	open := func(name string) int {
		fd, err := unix.Open(b.at(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	b.upper, b.lower = open("upper"), open("lower")
	b.Undo = Undo{
		Root: b.lower, Trash: open("lower/.migratefs/trash"), Layers: []int{b.upper, b.lower},
		Made: func(p layers.Path) { b.made = append(b.made, p) },
	}
	return b
}

func (b *undoBed) at(name string) string { return filepath.Join(b.dir, name) }

// throw makes lower/path and moves it to the trash.
func (b *undoBed) throw(path, content string, when time.Time) {
	b.t.Helper()
	write(b.t, b.at("lower/"+path), content)
	b.trash(path, when)
}

func (b *undoBed) trash(path string, when time.Time) {
	b.t.Helper()
	var stx unix.Statx_t
	must(b.t, sys.Statx(unix.AT_FDCWD, b.at("lower/"+path), &stx))
	a := local.AttrOf(&stx)
	in := filepath.Join(b.at("lower/.migratefs/trash"), TrashName(&a))
	must(b.t, os.Symlink(path, in+PathSuffix))
	ts := []unix.Timespec{{Sec: when.Unix()}, {Sec: when.Unix()}}
	must(b.t, unix.UtimesNanoAt(unix.AT_FDCWD, in+PathSuffix, ts, unix.AT_SYMLINK_NOFOLLOW))
	must(b.t, os.Rename(b.at("lower/"+path), in))
}

func (b *undoBed) versions(path string) []Trashed {
	b.t.Helper()
	of, err := Versions(context.Background(), b.Trash, layers.Path(path))
	must(b.t, err)
	return of
}

func (b *undoBed) content(name, want string) {
	b.t.Helper()
	got, err := os.ReadFile(b.at(name))
	if err != nil || string(got) != want {
		b.t.Errorf("%s is %q, %v; want %q", name, got, err, want)
	}
}

func TestUndoBringsBack(t *testing.T) {
	b := newUndoBed(t)
	now := time.Now()
	b.throw("d/f", "older", now.Add(-time.Hour))
	b.throw("d/f", "newer", now)
	b.throw("d/other", "other", now)
	of := b.versions("d/f")
	if len(of) != 2 || of[0].When.Sec != now.Unix() || of[1].When.Sec != now.Add(-time.Hour).Unix() {
		t.Fatalf("versions: %+v", of)
	}
	if all := b.versions("d"); len(all) != 3 {
		t.Errorf("below d: %+v", all)
	}
	if all := b.versions(""); len(all) != 3 {
		t.Errorf("below the root: %+v", all)
	}
	if none := b.versions("d/o"); len(none) != 0 {
		t.Errorf("of what is the beginning of a name: %+v", none)
	}
	must(t, b.Back(&of[1]))
	b.content("lower/d/f", "older")
	if of = b.versions("d/f"); len(of) != 1 {
		t.Errorf("after it came back: %+v", of)
	}
	if err := b.Back(&of[0]); !errors.Is(err, ErrTaken) {
		t.Errorf("over what is there: %v", err)
	}
	b.content("lower/d/f", "older")
	if of = b.versions("d/f"); len(of) != 1 {
		t.Errorf("what could not come back is not in the trash: %+v", of)
	}
}

// What any layer shows at the name, or on the way, is not hidden nor overwritten.
func TestUndoLeavesWhatIsThere(t *testing.T) {
	for _, there := range []string{"upper/d/f", "upper/d"} {
		b := newUndoBed(t)
		b.throw("d/f", "old", time.Now())
		write(t, b.at(there), "new")
		of := b.versions("d/f")
		if err := b.Back(&of[0]); !errors.Is(err, ErrTaken) {
			t.Errorf("%s is there: %v", there, err)
		}
		if _, err := os.Lstat(b.at("lower/d/f")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there, and in the lower: %v", there, err)
		}
		if len(b.versions("d/f")) != 1 {
			t.Errorf("%s is there, and the trash is empty", there)
		}
	}
}

// Somebody makes a file of the name in the upper while it comes back: it was first.
func TestUndoGivesWay(t *testing.T) {
	b := newUndoBed(t)
	b.throw("f", "old", time.Now())
	sys.SetHook(func(c sys.Change) error {
		if c == "link" {
			write(t, b.at("upper/f"), "new")
		}
		return nil
	})
	defer sys.SetHook(nil)
	of := b.versions("f")
	if err := b.Back(&of[0]); !errors.Is(err, ErrTaken) {
		t.Errorf("%v, want ErrTaken", err)
	}
	if _, err := os.Lstat(b.at("lower/f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is in the lower: %v", err)
	}
	if len(b.versions("f")) != 1 {
		t.Error("it is not in the trash")
	}
}

func TestUndoMakesDirectories(t *testing.T) {
	b := newUndoBed(t)
	b.throw("a/b/f", "old", time.Now())
	must(t, os.RemoveAll(b.at("lower/a")))
	must(t, os.Mkdir(b.at("upper/a"), 0o700))
	must(t, os.Chmod(b.at("upper/a"), 0o750|os.ModeSetgid))
	of := b.versions("a/b/f")
	must(t, b.Back(&of[0]))
	b.content("lower/a/b/f", "old")
	for name, want := range map[string]os.FileMode{"lower/a": 0o750 | os.ModeSetgid, "lower/a/b": 0o700} {
		fi, err := os.Stat(b.at(name))
		must(t, err)
		if got := fi.Mode() &^ os.ModeDir; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if len(b.made) != 1 || b.made[0] != "a/b" {
		t.Errorf("told of %q", b.made)
	}
}

func TestUndoCopiesElsewhere(t *testing.T) {
	b := newUndoBed(t)
	write(t, b.at("lower/f"), "content")
	must(t, unix.Setxattr(b.at("lower/f"), "user.note", []byte("n"), 0))
	when := time.Unix(1_000_000_000, 5)
	must(t, os.Chtimes(b.at("lower/f"), when, when))
	must(t, os.Chmod(b.at("lower/f"), 0o640))
	b.trash("f", time.Now())
	must(t, os.Symlink("target", b.at("lower/sym")))
	b.trash("sym", time.Now())
	out, err := unix.Open(b.at("out"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(out)
	ctx := context.Background()
	must(t, b.CopyTo(ctx, &b.versions("f")[0], out, "g"))
	must(t, b.CopyTo(ctx, &b.versions("sym")[0], out, "s"))
	b.content("out/g", "content")
	fi, err := os.Stat(b.at("out/g"))
	must(t, err)
	v := make([]byte, 8)
	n, err := unix.Getxattr(b.at("out/g"), "user.note", v)
	if err != nil || string(v[:n]) != "n" || fi.Mode() != 0o640 || !fi.ModTime().Equal(when) {
		t.Errorf("%v %v %q %v", fi.Mode(), fi.ModTime(), v[:max(n, 0)], err)
	}
	if to, err := os.Readlink(b.at("out/s")); to != "target" || err != nil {
		t.Errorf("symlink to %q, %v", to, err)
	}
	for _, name := range []string{"f", "sym"} {
		if err := b.CopyTo(ctx, &b.versions(name)[0], out, "g"); !errors.Is(err, ErrTaken) {
			t.Errorf("%s over what is there: %v", name, err)
		}
	}
	b.content("out/g", "content")
	if es, _ := os.ReadDir(b.at("out")); len(es) != 2 {
		t.Errorf("in the directory: %v", es)
	}
	if len(b.versions("")) != 2 {
		t.Error("what was copied is not in the trash any more")
	}
}

// A death at any change leaves the file at its name, in the trash, or both.
func TestUndoDies(t *testing.T) {
	for n := 1; ; n++ {
		b := newUndoBed(t)
		b.throw("a/f", "old", time.Now())
		must(t, os.RemoveAll(b.at("lower/a")))
		of := b.versions("a/f")
		at, dead := 0, errors.New("dead")
		sys.SetHook(func(sys.Change) error {
			if at++; at >= n {
				return dead
			}
			return nil
		})
		err := b.Back(&of[0])
		sys.SetHook(nil)
		content, rerr := os.ReadFile(b.at("lower/a/f"))
		if left := b.versions("a/f"); len(left) == 0 && (rerr != nil || string(content) != "old") {
			t.Errorf("death at change %d: %v, and it is nowhere", n, err)
		}
		// Once more, by somebody else.
		if left := b.versions("a/f"); len(left) == 1 && rerr != nil {
			must(t, b.Back(&left[0]))
		}
		b.content("lower/a/f", "old")
		if at < n {
			return
		}
	}
}

// A trash that somebody has written to leads nowhere.
func TestUndoOfNonsense(t *testing.T) {
	b := newUndoBed(t)
	trash := b.at("lower/.migratefs/trash/")
	write(t, trash+"1-2-3.4-5.6~77", "x")
	must(t, os.Symlink("../../../etc/passwd", trash+"1-2-3.4-5.6~77.path"))
	write(t, trash+strings.Repeat("x", 200), "x")
	must(t, os.Symlink("gone", trash+"8.path"))
	if of := b.versions(""); len(of) != 0 {
		t.Errorf("%+v", of)
	}
}
