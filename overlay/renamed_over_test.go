package overlay

import (
	"context"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// TestDeathAfterRenameOver: a daemon dies when it has renamed a file in the upper over
// one that the lower has, which is then hidden by another file. That heals by a drain,
// or a repair, and comes back by nothing.
func TestDeathAfterRenameOver(t *testing.T) {
	prepare := map[string]func(d *driver) unix.Errno{
		"file":    func(*driver) unix.Errno { return 0 },
		"symlink": func(d *driver) unix.Errno { d.unlink("up"); return d.symlink("to", "up") },
	}
	heal := map[string]func(t *testing.T, w *world){
		"drain": func(t *testing.T, w *world) {
			must(t, w.open())
			must(t, w.fs.Drain(context.Background(), DrainConfig{Path: "low", Failed: func(f DrainFailure) { t.Errorf("%+v", f) }}))
		},
		"repair": func(t *testing.T, w *world) {
			w.check(true)
			must(t, w.open())
		},
		"unlink": func(t *testing.T, w *world) {
			must(t, w.open())
			d := &driver{fs: w.fs}
			if errno := d.unlink("low"); errno != 0 {
				t.Error(errno)
			}
			d.end()
		},
	}
	for what, first := range prepare {
		for how, end := range heal {
			for _, hosts := range []Hosts{Single, Many} {
				t.Run(what+" "+how+" "+hosts.String(), func(t *testing.T) {
					k := oneHost
					k.hosts = hosts
					w := newWorld(t, worlds(t), k)
					defer w.remove()
					must(t, w.open())
					d := &driver{fs: w.fs}
					if errno := first(d); errno != 0 {
						t.Fatal(errno)
					}
					var mu sync.Mutex
					dead := false
					sys.SetHook(func(c sys.Change) error {
						mu.Lock()
						defer mu.Unlock()
						if dead {
							return errDead
						}
						dead = c == "rename"
						return nil
					})
					_ = d.rename("up", "low", 0)
					w.close()
					sys.SetHook(nil)
					if w.has("upper/up") || !w.has("upper/low") || !w.has("l1/low") {
						t.Fatal("it is not what it should be a test of")
					}
					end(t, w)
					if w.has("l1/low") {
						t.Error("the lower file is there")
					}
					if w.has("upper/low") != (how != "unlink") {
						t.Error("of the upper file")
					}
					if left := w.leftovers(); left != "" {
						t.Errorf("left over:\n\t%s", left)
					}
				})
			}
		}
	}
}

// TestRemoveIfMovesNothingElse: what is another file by now stays where it is.
func TestRemoveIfMovesNothingElse(t *testing.T) {
	w := newWorld(t, worlds(t), steppedHosts)
	defer w.remove()
	must(t, w.open())
	f := &fault{}
	f.set()
	taken, err := w.fs.removeIf(w.fs.upper.root, "up", fileID{dev: 1, ino: 2})
	sys.SetHook(nil)
	if taken || err != nil || f.n > 0 || !w.has("upper/up") {
		t.Errorf("%v, %v, after %q", taken, err, f.names)
	}
	id, err := idAt(w.fs.upper.root, "up")
	must(t, err)
	if taken, err := w.fs.removeIf(w.fs.upper.root, "up", id); !taken || err != nil || w.has("upper/up") {
		t.Errorf("%v, %v", taken, err)
	}
}
