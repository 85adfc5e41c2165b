package overlay

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

// session does random things to the same names of several worlds, and returns what
// it did.
func session(t *testing.T, r *rand.Rand, steps int, worlds ...*world) {
	t.Helper()
	dirs := []string{"", "dir/", "dir/sub/", "both dir/", "empty/", "up dir/"}
	names := []string{"low", "other", "both", "a", "b", "c", "hard1", "hard2", "hard3", "two", "new", "sym", "fifo", "up"}
	name := func() string { return dirs[r.IntN(len(dirs))] + names[r.IntN(len(names))] }
	for step := range steps {
		a, b, x := name(), name(), r.IntN(100)
		content := fmt.Sprintf("written %d", step)
		do := func(d *driver) unix.Errno {
			switch {
			case x < 25:
				return d.write(a, content, 0)
			case x < 30:
				return d.truncate(a, 3)
			case x < 35:
				return d.chmod(a, 0o600+uint32(step%8))
			case x < 55:
				return d.unlink(a)
			case x < 80:
				return d.rename(a, b, 0)
			case x < 83:
				return d.rename(a, b, unix.RENAME_EXCHANGE)
			case x < 90:
				return d.link(a, b)
			case x < 92:
				return d.mkdir(a)
			case x < 94:
				return d.rmdir(strings.TrimSuffix(dirs[1+step%(len(dirs)-1)], "/"))
			default:
				return d.create(a, content)
			}
		}
		var first unix.Errno
		for i, w := range worlds {
			d := &driver{fs: w.fs}
			errno := do(d)
			d.end()
			if i == 0 {
				first = errno
			} else if errno != first {
				t.Fatalf("step %d (%d of %s and %s): %v in world %d, %v in the first", step, x, a, b, errno, i, first)
			}
		}
	}
}

// contentsOf are those of all regular files under a directory.
func contentsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(p, "/.migratefs/id") {
			b, err := os.ReadFile(p)
			must(t, err)
			all[string(b)] = true
		}
		return err
	}))
	return all
}

// Whatever is done, with keep_lower and trash_days no content leaves a lower, and the
// merged tree is what it is without; nothing older comes back, at a remount neither.
func TestNothingLeavesTheLower(t *testing.T) {
	base := worlds(t)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			k := stackings[2+seed%2] // migrate, of one or two
			plain, keep, days := newWorld(t, base, k), newWorld(t, base, k), newWorld(t, base, k)
			keep.tweak = func(c *Config) { c.KeepLower = true }
			days.tweak = func(c *Config) { c.TrashDays = 7 }
			all := []*world{plain, keep, days}
			had := map[string]bool{}
			for i := range k.lowers {
				for c := range contentsOf(t, plain.at(fmt.Sprintf("l%d", i+1))) {
					had[c] = true
				}
			}
			same := func(when string) {
				want, err := plain.look()
				must(t, err)
				for i, w := range all[1:] {
					got, err := w.look()
					must(t, err)
					if d := want.diff(got); d != "" {
						t.Fatalf("%s, with %s:\n\t%s", when, []string{"keep_lower", "trash_days"}[i], d)
					}
					has := contentsOf(t, w.at("l1"))
					for c := range contentsOf(t, w.at("l2")) {
						has[c] = true
					}
					for c := range had {
						if !has[c] {
							t.Fatalf("%s, with %s: %q has left the lower", when, []string{"keep_lower", "trash_days"}[i], c)
						}
					}
				}
			}
			r := rand.New(rand.NewPCG(seed, 4))
			for _, w := range all {
				must(t, w.open())
				defer w.remove()
			}
			for round := range 4 {
				session(t, r, 40, all...)
				same(fmt.Sprintf("round %d", round))
				for _, w := range all {
					w.close()
					must(t, w.open())
				}
				same(fmt.Sprintf("round %d and a remount", round))
			}
			// In time the trash is emptied; nobody sees that.
			days.fs.expireNow(time.Now().AddDate(0, 0, 6))
			same("after six days")
			days.fs.expireNow(time.Now().AddDate(0, 0, 8))
			want, err := plain.look()
			must(t, err)
			got, err := days.look()
			must(t, err)
			if d := want.diff(got); d != "" {
				t.Errorf("after eight days:\n\t%s", d)
			}
			if left := days.leftovers(); left != "" {
				t.Errorf("after eight days: %s", left)
			}
		})
	}
}

// A lower copy is where it was while the upper has its name, and then in the trash,
// with the path it had.
func TestKeepLower(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[2])
	w.tweak = func(c *Config) { c.KeepLower = true }
	must(t, w.open())
	defer w.remove()
	d := &driver{fs: w.fs}
	defer d.end()
	trashed := func() map[string]string {
		t.Helper()
		found := map[string]string{}
		es, err := os.ReadDir(w.at("l1/.migratefs/trash"))
		must(t, err)
		for _, e := range es {
			id, note := strings.CutSuffix(e.Name(), ".path")
			if !note {
				continue
			}
			target, err := os.Readlink(w.at("l1/.migratefs/trash", e.Name()))
			must(t, err)
			b, err := os.ReadFile(w.at("l1/.migratefs/trash", id))
			must(t, err)
			found[target] = string(b)
		}
		return found
	}
	has := func(what, want string, is map[string]string) {
		t.Helper()
		if got := fmt.Sprint(is); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	for _, name := range []string{"low", "dir/a", "other"} {
		if errno := d.write(name, "NEW", 0); errno != 0 {
			t.Fatal(errno)
		}
		if b, err := os.ReadFile(w.at("l1", name)); err != nil || string(b) != "lower "+name {
			t.Errorf("the lower copy of %s is %q, %v", name, b, err)
		}
	}
	has("written to", "map[]", trashed())
	for what, errno := range map[string]unix.Errno{
		"unlink": d.unlink("low"), "rename away": d.rename("dir/a", "dir/z", 0), "rename over": d.rename("up", "other", 0),
		"unlink of what never came up": d.unlink("dir/b"), "rename below": d.rename("dir/sub/c", "dir/sub/d", 0),
		"rename over what never came up": d.rename("up dir/u", "dir/sub/d", 0),
	} {
		if errno != 0 {
			t.Errorf("%s: %v", what, errno)
		}
	}
	has("gone", "map[dir/a:lower dir/a dir/b:lower dir/b dir/sub/d:lower dir/sub/c low:lower low other:lower other]", trashed())
	for _, name := range []string{"low", "dir/a", "other", "dir/b", "dir/sub/c", "dir/sub/d"} {
		if _, err := os.Lstat(w.at("l1", name)); !os.IsNotExist(err) {
			t.Errorf("%s is in the lower: %v", name, err)
		}
	}
}

// A drain with keep_lower brings everything up, once, and leaves the lower as it is.
func TestDrainKeepsLower(t *testing.T) {
	base := worlds(t)
	w := emptyWorld(t, base, stackings[2])
	defer w.remove()
	w.tweak = func(c *Config) { c.KeepLower = true }
	for _, name := range []string{"d/a", "d/b", "c"} {
		w.mkdir("l1", filepath.Dir(name))
		w.file("l1", name, "lower "+name)
	}
	w.age()
	must(t, w.open())
	for pass, files := range []int64{3, 0} {
		stays, seen := w.drainAll(DrainConfig{Jobs: 2})
		if len(stays) > 0 || seen.Files.Load() != files {
			t.Errorf("pass %d: %d files came up, %v stay", pass, seen.Files.Load(), stays)
		}
	}
	for _, l := range []string{"l1", "upper"} {
		for _, name := range []string{"d/a", "d/b", "c"} {
			if b, err := os.ReadFile(w.at(l, name)); err != nil || string(b) != "lower "+name {
				t.Errorf("%s of %s: %q, %v", name, l, b, err)
			}
		}
	}
}
