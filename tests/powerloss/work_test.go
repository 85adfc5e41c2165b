package powerloss

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bigSize is the size of a file that takes many writes to copy.
const bigSize = 1 << 20

// fill makes the lower tree, and returns what its names show.
func fill(t *testing.T, lower string) state {
	t.Helper()
	s := state{}
	put := func(name, content string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(lower, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(lower, name), []byte(content), 0o644))
		s[name] = content
	}
	for i := range 16 {
		name := fmt.Sprintf("f%d", i)
		put(name, name+":lower\n")
	}
	for _, name := range []string{"d/a", "d/b", "d/c", "e/x/y", "e/x/z"} {
		put(name, strings.ReplaceAll(name, "/", "-")+":lower\n")
	}
	put("big", "big:"+strings.Repeat("0123456789abcde\n", bigSize/16))
	put("h1", "hard:lower\n")
	for _, name := range []string{"h2", "d/h3"} {
		must(t, os.Link(filepath.Join(lower, "h1"), filepath.Join(lower, name)))
		s[name] = s["h1"]
	}
	return s
}

// worker does the steps, and keeps the history of what they did.
type worker struct {
	t    *testing.T
	r    *recorder
	h    *history
	root string
	rng  *rand.Rand
}

func (w *worker) path(name string) string { return filepath.Join(w.root, name) }

// step changes what the names show.
func (w *worker) step(then func(state), do func() error) {
	w.t.Helper()
	w.h.begin(w.r.now(), then)
	must(w.t, do())
	if w.rng.IntN(4) == 0 {
		// Time for what is done later: lower copies are removed in batches.
		time.Sleep(150 * time.Millisecond)
	}
}

// add appends to a file; sync says whether the application makes that durable, and
// then the file has all of names.
func (w *worker) add(name, text string, sync bool, others ...string) {
	w.t.Helper()
	all := append(others, name)
	w.step(func(s state) {
		for _, n := range all {
			s[n] += text
		}
	}, func() error {
		f, err := os.OpenFile(w.path(name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err = f.WriteString(text); err == nil && sync {
			err = f.Sync()
		}
		return err
	})
	if sync {
		w.h.synced(w.r.now(), all...)
	}
}

func (w *worker) rename(from, to string) {
	w.t.Helper()
	w.step(func(s state) {
		for n, v := range s {
			if n == from || strings.HasPrefix(n, from+"/") {
				delete(s, n)
				s[to+n[len(from):]] = v
				w.h.whitened(n)
			}
		}
	}, func() error { return os.Rename(w.path(from), w.path(to)) })
}

func (w *worker) unlink(name string) {
	w.t.Helper()
	w.h.whitened(name)
	w.step(func(s state) { delete(s, name) }, func() error { return os.Remove(w.path(name)) })
}

func (w *worker) link(old, name string) {
	w.t.Helper()
	w.step(func(s state) { s[name] = s[old] }, func() error { return os.Link(w.path(old), w.path(name)) })
}

// save writes a file as editors do: a new one, synced, renamed over the old.
func (w *worker) save(name, text string) {
	w.t.Helper()
	temp := name + ".new"
	w.step(func(s state) { s[temp] = "" }, func() error { return os.WriteFile(w.path(temp), nil, 0o644) })
	w.add(temp, text, true)
	w.rename(temp, name)
}

// syncAll makes everything durable.
func (w *worker) syncAll() {
	w.t.Helper()
	for _, name := range []string{".", "d"} {
		f, err := os.Open(w.path(name))
		must(w.t, err)
		must(w.t, unix.Syncfs(int(f.Fd())))
		f.Close()
	}
}

// work is what the applications do before the power goes.
func (w *worker) work(mode string) {
	w.add("f0", "more\n", true)
	w.add("f1", "more\n", false)
	w.rename("f2", "r2")
	w.add("f3", "more\n", true)
	w.rename("f3", "r3")
	w.add("f4", "more\n", true)
	w.unlink("f4")
	w.unlink("f5")
	w.add("h1", "more\n", true, "h2", "d/h3")
	w.unlink("h2")
	w.rename("d/h3", "h4")
	w.link("f6", "l6")
	w.add("f6", "more\n", true, "l6")
	w.rename("d/a", "d/b")
	w.add("f7", "more\n", true)
	w.rename("f7", "f8") // the one came up, the other did not
	w.rename("f9", "f0") // and the other way round
	w.save("f10", "saved:by rename\n")
	w.add("big", "more\n", true)
	w.step(func(s state) { s["f11"] = "f11:" }, func() error { return os.Truncate(w.path("f11"), 4) })
	w.unlink("big")
	w.rename("d/c", "e/c")
	w.add("e/x/y", "more\n", true)
	if mode != "migrate" { // there it is for mv to copy what lies in both layers
		w.rename("e/x", "e/w")
		w.add("e/w/z", "more\n", true)
		w.rename("e", "g")
		w.rename("g/w", "d/w")
		w.rename("d/w", "e")
	}
	// What is gone from the lower alone must not come back when what hides it goes.
	w.unlink("f12")
	w.save("f12", "f12again:saved\n")
	w.unlink("f12")
	w.rename("f13", "r13")
	w.save("f13", "f13again:saved\n")
	w.rename("f13", "f14")
	w.add("f1", "and more\n", true)
	w.unlink("f1")
	w.rename("r3", "f1")
}

// look returns what the names below root show.
func look(root string) (state, error) {
	s := state{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		s[name] = string(b)
		return err
	})
	return s, err
}
