package copyup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// lowerWithTrash is a lower that holds the file f, as it was looked up.
type lowerWithTrash struct {
	dir       string
	root, bin int
	was       layers.Attr
	t         Trash
}

func newLowerWithTrash(t *testing.T) *lowerWithTrash {
	t.Helper()
	l := &lowerWithTrash{dir: t.TempDir()}
	must(t, os.Mkdir(filepath.Join(l.dir, "trash"), 0o700))
	must(t, os.WriteFile(filepath.Join(l.dir, "f"), []byte("old"), 0o600))
	var err error
	l.root, err = unix.Open(l.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	l.bin, err = unix.Open(filepath.Join(l.dir, "trash"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(l.root); unix.Close(l.bin) })
	var stx unix.Statx_t
	must(t, sys.Statx(l.root, "f", &stx))
	l.was = local.AttrOf(&stx)
	l.t = Trash{Dir: l.bin, Root: l.root, Lower: "lower", Successor: func(layers.Path, Origin) bool { return false }}
	return l
}

func (l *lowerWithTrash) holds(t *testing.T) (names []string) {
	t.Helper()
	for _, d := range []string{"", "trash/"} {
		es, err := os.ReadDir(filepath.Join(l.dir, d))
		must(t, err)
		for _, e := range es {
			if e.Name() != "trash" && e.Type().IsRegular() {
				b, err := os.ReadFile(filepath.Join(l.dir, d, e.Name()))
				must(t, err)
				names = append(names, d+": "+string(b))
			}
		}
	}
	return names
}

// die runs Remove as far as the n-th change, and meanwhile, when it has had its first
// look, what somebody else does.
func (l *lowerWithTrash) die(n int, meanwhile func()) {
	dead := errors.New("dead")
	sys.SetHook(func(sys.Change) error {
		if meanwhile != nil {
			meanwhile()
			meanwhile = nil
		}
		if n--; n <= 0 {
			return dead
		}
		return nil
	})
	defer sys.SetHook(nil)
	_ = Remove(l.root, "f", &l.was, l.bin, "f")
}

func TestRemove(t *testing.T) {
	l := newLowerWithTrash(t)
	must(t, Remove(l.root, "f", &l.was, l.bin, "f"))
	if got := l.holds(t); len(got) > 0 {
		t.Errorf("left: %q", got)
	}

	l = newLowerWithTrash(t)
	must(t, os.WriteFile(filepath.Join(l.dir, "g"), []byte("somebody else's"), 0o600))
	must(t, os.Rename(filepath.Join(l.dir, "g"), filepath.Join(l.dir, "f")))
	if err := Remove(l.root, "f", &l.was, l.bin, "f"); !errors.Is(err, ErrReplaced) {
		t.Errorf("of another file: %v", err)
	}
	if got := l.holds(t); !slices.Equal(got, []string{": somebody else's"}) {
		t.Errorf("of another file, left: %q", got)
	}
}

// A file that is somebody else's stays in the trash if its directory is gone.
func TestRemoveWithoutAWayBack(t *testing.T) {
	l := newLowerWithTrash(t)
	must(t, os.Mkdir(filepath.Join(l.dir, "d"), 0o700))
	must(t, os.Link(filepath.Join(l.dir, "f"), filepath.Join(l.dir, "d/f")))
	dir, err := unix.Open(filepath.Join(l.dir, "d"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(dir)
	sys.SetHook(func(c sys.Change) error {
		if c == "symlink" { // after the first look
			must(t, os.Remove(filepath.Join(l.dir, "d/f")))
			must(t, os.WriteFile(filepath.Join(l.dir, "d/f"), []byte("somebody else's"), 0o600))
		}
		if c == "link" {
			sys.SetHook(nil)
			must(t, os.Remove(filepath.Join(l.dir, "d")))
		}
		return nil
	})
	defer sys.SetHook(nil)
	if err := Remove(dir, "f", &l.was, l.bin, "d/f"); !errors.Is(err, ErrReplaced) {
		t.Error(err)
	}
	if got := l.holds(t); !slices.Equal(got, []string{": old", "trash/: somebody else's"}) {
		t.Errorf("there is %q", got)
	}
}

// A directory that came to the name meanwhile goes back to it, with what is in it.
func TestRemoveMeetsADirectory(t *testing.T) {
	for _, died := range []bool{false, true} {
		l := newLowerWithTrash(t)
		must(t, os.Mkdir(filepath.Join(l.dir, "d"), 0o700))
		must(t, os.WriteFile(filepath.Join(l.dir, "d/in"), nil, 0o600))
		n := 100
		if died {
			n = 3 // between the rename and the look at what was renamed
		}
		l.die(n, func() {
			must(t, os.Remove(filepath.Join(l.dir, "f")))
			must(t, os.Rename(filepath.Join(l.dir, "d"), filepath.Join(l.dir, "f")))
		})
		if died {
			if left, err := l.t.Settle(t.Context()); left != 0 || err != nil {
				t.Errorf("settled: %d left, %v", left, err)
			}
		}
		if _, err := os.Stat(filepath.Join(l.dir, "f/in")); err != nil {
			t.Errorf("died %v: %v", died, err)
		}
		if in, err := os.ReadDir(filepath.Join(l.dir, "trash")); len(in) > 0 || err != nil {
			t.Errorf("died %v: in the trash: %v, %v", died, in, err)
		}
	}
}

// TestSettle ends removals that stopped with the file in the trash.
func TestSettle(t *testing.T) {
	const steps = 3 // the unlink of the file is the third change
	for _, c := range []struct {
		name    string
		replace string // with what, before the removal
		retake  string // what has its name afterwards
		success bool
		left    int
		want    []string
		fails   bool
	}{
		{"its successor is there", "", "", true, 0, nil, false},
		{"its successor is not there", "", "", false, 1, []string{"trash/: old"}, false},
		{"its name is another's by now", "", "new", false, 1, []string{": new", "trash/: old"}, false},
		{"it is somebody else's", "new", "", true, 0, []string{": new"}, false},
		{"it is somebody else's, and its name is taken", "new", "newer", true, 1, []string{": newer", "trash/: new"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLowerWithTrash(t)
			f := filepath.Join(l.dir, "f")
			l.die(steps, func() {
				if c.replace != "" {
					must(t, os.WriteFile(f+"2", []byte(c.replace), 0o600))
					must(t, os.Rename(f+"2", f))
				}
			})
			if c.retake != "" {
				must(t, os.WriteFile(f, []byte(c.retake), 0o600))
			}
			var asked Origin
			l.t.Successor = func(p layers.Path, o Origin) bool { asked = o; return c.success && p == "f" }
			for range 2 { // and once more
				left, err := l.t.Settle(context.Background())
				if left != c.left || (err != nil) != c.fails {
					t.Errorf("%d left, %v", left, err)
				}
			}
			if c.replace == "" && asked != OriginOf("lower", &l.was) {
				t.Errorf("asked for the successor of %q", asked)
			}
			if got := l.holds(t); !slices.Equal(got, c.want) {
				t.Errorf("then there is %q, want %q", got, c.want)
			}
		})
	}
}

// TestSettleWhileOthersRemove leaves what another host may be about to do.
func TestSettleWhileOthersRemove(t *testing.T) {
	l := newLowerWithTrash(t)
	l.die(2, nil)
	intents := func() int {
		es, err := os.ReadDir(filepath.Join(l.dir, "trash"))
		must(t, err)
		return len(es)
	}
	l.t.Grace = time.Hour
	_, err := l.t.Settle(context.Background())
	must(t, err)
	if intents() != 1 {
		t.Error("an intent of a moment ago is gone")
	}
	es, _ := os.ReadDir(filepath.Join(l.dir, "trash"))
	long := unix.NsecToTimespec(time.Now().Add(-2 * time.Hour).UnixNano())
	must(t, unix.UtimesNanoAt(l.bin, es[0].Name(), []unix.Timespec{long, long}, unix.AT_SYMLINK_NOFOLLOW))
	_, err = l.t.Settle(context.Background())
	must(t, err)
	if intents() != 0 {
		t.Error("an intent of long ago stays")
	}
	if got := l.holds(t); !slices.Equal(got, []string{": old"}) {
		t.Errorf("there is %q", got)
	}
}
