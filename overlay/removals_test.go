package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// waits has lower copies stay until finishRemovals is called.
func waits(c *Config) { c.gather = time.Hour }

// ended is what do does, and then what the worker has left to do.
func ended(do func(d *driver) unix.Errno) func(d *driver) unix.Errno {
	return func(d *driver) unix.Errno {
		errno := do(d)
		d.fs.finishRemovals()
		return errno
	}
}

// queued are operations on names whose lower copies are yet to be removed.
var queued = []operation{
	{name: "write", do: func(d *driver) unix.Errno { return d.write("dir/a", "LOWER", 0) },
		effect: onFile("dir/a", contentOf("LOWER dir/a"))},
	{name: "chmod", first: rewrite, do: func(d *driver) unix.Errno { return d.chmod("low", 0o600) },
		effect: onFile("low", func(f *file) { f.mode = 0o600 })},
	unlinks("low").after("that was written", rewrite),
	moves("low", "new").after("that was written", rewrite),
	moves("other", "low").after("that was written", rewrite),
	moves("low", "dir/b").after("that was written", rewrite),
	exchanges("low", "up").after("that was written", rewrite),
	{name: "link", first: rewrite, do: func(d *driver) unix.Errno { return d.link("low", "new") }, effect: linked("low", "new")},
}

func rewrite(d *driver) { d.write("low", "WRITTEN", 0) }

// TestDeathWhileCopiesWait is TestDeathAtEveryChange where lower copies are removed
// later.
func TestDeathWhileCopiesWait(t *testing.T) {
	for _, k := range []stacking{stackings[2], stackings[3]} {
		t.Run(k.name, func(t *testing.T) {
			base := worlds(t)
			for i := range queued {
				o := queued[i]
				o.do = ended(o.do)
				t.Run(o.name, func(t *testing.T) {
					start := func() (*world, sight) {
						w := newWorld(t, base, k)
						w.tweak = waits
						must(t, w.open())
						if o.first != nil {
							w.first = &driver{fs: w.fs}
							o.first(w.first)
						}
						v, err := w.look()
						must(t, err)
						return w, v
					}
					for n := 1; ; n++ {
						w, before := start()
						after := before.clone()
						o.effect(after, k)
						f := &fault{at: n, dead: true, err: errDead}
						f.set()
						errno := o.run(w)
						w.close()
						sys.SetHook(nil)
						must(t, w.open())
						w.judge(f.where(), errno, before, after)
						if left := w.leftovers(); left != "" {
							t.Errorf("%s: left over:\n\t%s", f.where(), left)
						}
						w.remove()
						if !f.met() {
							if errno != 0 {
								t.Errorf("no fault, and %v", errno)
							}
							break
						}
					}
				})
			}
		})
	}
}

// A name that is in two layers since a crash, or since the worker failed, is still
// one name: what takes it away takes it from both, and nothing older shows.
func TestNamesInTwoLayers(t *testing.T) {
	base := worlds(t)
	for i := range queued {
		o := &queued[i]
		if o.first == nil {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			w := newWorld(t, base, stackings[2])
			w.tweak = waits
			defer w.remove()
			must(t, w.open())
			o.first(&driver{fs: w.fs})
			f := &fault{at: 1, dead: true, err: errDead}
			f.set()
			w.close()
			sys.SetHook(nil)
			if _, err := os.Lstat(w.at("l1/low")); err != nil {
				t.Fatal("the lower copy is gone: ", err)
			}
			must(t, w.open())
			after, err := w.look()
			must(t, err)
			o.effect(after, w.kind)
			if errno := o.run(w); errno != 0 {
				t.Error(errno)
			}
			for _, when := range []string{"then", "after a remount"} {
				now, err := w.look()
				must(t, err)
				if d := after.allow(now).diff(now); d != "" {
					t.Errorf("%s:\n\t%s", when, d)
				}
				w.close()
				must(t, w.open())
			}
		})
	}
}

// Nothing goes from the lower before its successor's name is durable, and that costs
// one call for each directory, or one for all.
func TestRemovalsAreBatched(t *testing.T) {
	for _, c := range []struct {
		dirs   int
		worker []string // what of all it does is not to the lower
	}{{1, []string{"fsync", "fsync"}}, {3, []string{"fsync", "fsync", "fsync", "fsync"}}} {
		t.Run(fmt.Sprint(c.dirs), func(t *testing.T) {
			w := newWorld(t, worlds(t), stackings[2])
			w.tweak = waits
			for i := range c.dirs {
				for j := range 20 {
					w.mkdir("l1", fmt.Sprint("d", i))
					w.file("l1", fmt.Sprintf("d%d/%d", i, j), "x")
				}
			}
			must(t, w.open())
			defer w.remove()
			d := &driver{fs: w.fs}
			for i := range c.dirs {
				for j := range 20 {
					if errno := d.write(fmt.Sprintf("d%d/%d", i, j), "y", 0); errno != 0 {
						t.Fatal(errno)
					}
				}
			}
			d.end()
			f := &fault{}
			f.set()
			w.fs.finishRemovals()
			sys.SetHook(nil)
			var syncs []string
			for i, name := range f.names {
				if name == "fsync" || name == "syncfs" {
					syncs = append(syncs, name)
				}
				if name == "rename" && slices.Contains(f.names[i:], "fsync") {
					t.Fatal("a lower copy goes before all names are durable")
				}
			}
			if !slices.Equal(syncs, c.worker) {
				t.Errorf("%q, want %q", syncs, c.worker)
			}
			for i := range c.dirs {
				if es, err := os.ReadDir(w.at("l1", fmt.Sprint("d", i))); err != nil || len(es) > 0 {
					t.Errorf("%d are left, %v", len(es), err)
				}
			}
		})
	}
}

// A sync that fails leaves all lower copies where they are.
func TestRemovalsWithoutASync(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[2])
	w.tweak = waits
	must(t, w.open())
	defer w.remove()
	d := &driver{fs: w.fs}
	defer d.end()
	rewrite(d)
	f := &fault{at: 1, err: unix.EIO}
	f.set()
	w.fs.finishRemovals()
	sys.SetHook(nil)
	if b, err := os.ReadFile(w.at("l1/low")); err != nil || string(b) != "lower low" {
		t.Errorf("the lower copy: %q, %v", b, err)
	}
}

// A copy-up waits while too much is left to remove, and can be interrupted.
func TestRemovalsAreBounded(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[2])
	w.tweak = waits
	must(t, w.open())
	defer w.remove()
	d := &driver{fs: w.fs}
	defer d.end()
	rewrite(d)
	q := &w.fs.removals
	q.mu.Lock()
	q.busy = removalsMax
	q.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.fs.roomForRemoval(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	came := make(chan unix.Errno)
	go func() { came <- d.write("other", "x", 0) }()
	select {
	case errno := <-came:
		t.Fatalf("a copy-up did not wait: %v", errno)
	case <-time.After(50 * time.Millisecond):
	}
	w.fs.finishRemovals()
	if errno := <-came; errno != 0 {
		t.Error(errno)
	}
}

// TestRemovalsEnd: a mount ends although the removal of lower copies takes longer than it
// may; what is left is in both layers, and a drain removes it.
func TestRemovalsEnd(t *testing.T) {
	w := newWorld(t, worlds(t), oneHost)
	defer w.remove()
	w.tweak = waits
	must(t, w.open())
	d := &driver{fs: w.fs}
	names := []string{"low", "other", "dir/a", "dir/b"}
	for _, name := range names {
		if errno := d.write(name, "WR", 0); errno != 0 {
			t.Fatal(name, errno)
		}
	}
	d.end()
	sys.SetHook(func(c sys.Change) error {
		if c == "rename" {
			w.fs.removals.until.Store(1) // it takes too long from here
		}
		return nil
	})
	w.fs.removals.atEnd = time.Hour
	w.close()
	sys.SetHook(nil)
	left := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !w.has("l1/" + name) })
	if len(left) != 3 {
		t.Errorf("left are %q", left)
	}
	must(t, w.open())
	must(t, w.fs.Drain(context.Background(), DrainConfig{}))
	v, err := w.look()
	must(t, err)
	for _, name := range names {
		if w.has("l1/"+name) || v[name].content != "WR"+("lower " + name)[2:] {
			t.Errorf("%s is %v", name, v[name])
		}
	}
}
