package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// underneath is a mount whose layers are changed by others while it is used.
type underneath struct {
	*testbed.Mounted
	t            *testing.T
	upper, lower string
}

func newUnderneath(t *testing.T, mode, more string, fill func(t *testing.T, lower string)) *underneath {
	t.Helper()
	testbed.NeedRoot(t)
	dir := testbed.TempDir(t)
	u := &underneath{t: t, upper: filepath.Join(dir, "upper"), lower: filepath.Join(dir, "lower")}
	for _, d := range []string{u.upper, u.lower, filepath.Join(dir, "mnt")} {
		must(t, os.Mkdir(d, 0o755))
	}
	fill(t, u.lower)
	u.Mounted = testbed.Mount(t, "mode="+mode+",lowerdir="+u.lower+",upperdir="+u.upper+more, filepath.Join(dir, "mnt"))
	return u
}

// soon waits until f sees what it should: attributes are believed for a second.
func (u *underneath) soon(what string, f func() bool) {
	u.t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			u.t.Errorf("%s is not seen", what)
			return
		}
	}
}

func (u *underneath) shows(name, want string) func() bool {
	return func() bool {
		b, err := os.ReadFile(u.Path(name))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE) {
			u.t.Errorf("%s: %v", name, err)
		}
		return err == nil && string(b) == want
	}
}

func (u *underneath) lacks(name string) func() bool {
	return func() bool { return errors.Is(unix.Lstat(u.Path(name), &unix.Stat_t{}), unix.ENOENT) }
}

func touchAll(t *testing.T, u *underneath, names ...string) {
	t.Helper()
	for _, n := range names {
		_, err := os.ReadFile(u.Path(n))
		must(t, err)
	}
}

// What is made, changed, replaced, moved and removed directly in a layer is seen.
func TestLayersChangedUnderneath(t *testing.T) {
	for _, mode := range []string{"migrate", "overlay"} {
		t.Run(mode, func(t *testing.T) {
			more := ""
			if mode == "overlay" {
				more = ",attr_timeout=1,entry_timeout=1"
			}
			u := newUnderneath(t, mode, more, files("f", "g", "gone", "d/h", "d/i", "moved/k", "type"))
			touchAll(t, u, "f", "g", "gone", "d/h", "d/i", "moved/k", "type")
			layers := []string{u.lower}
			if mode == "migrate" {
				layers = append(layers, u.upper)
			}
			for _, l := range layers {
				base := filepath.Base(l)
				in := func(n string) string { return filepath.Join(l, n) }
				put(t, in("new-"+base), "new in "+base)
				u.soon("a new file in "+base, u.shows("new-"+base, "new in "+base))
				must(t, os.MkdirAll(in("newdir-"+base), 0o755))
				put(t, in("newdir-"+base+"/x"), "x")
				u.soon("a new directory in "+base, u.shows("newdir-"+base+"/x", "x"))
				put(t, in("new-"+base), "changed")
				u.soon("a change in "+base, u.shows("new-"+base, "changed"))
				put(t, in("temp"), "replaced by rename")
				must(t, os.Rename(in("temp"), in("new-"+base)))
				u.soon("a replacement in "+base, u.shows("new-"+base, "replaced by rename"))
				must(t, os.Rename(in("newdir-"+base), in("otherdir-"+base)))
				u.soon("a moved directory in "+base, u.shows("otherdir-"+base+"/x", "x"))
				u.soon("its old name in "+base, u.lacks("newdir-"+base))
				must(t, os.RemoveAll(in("otherdir-"+base)))
				u.soon("a removed directory in "+base, u.lacks("otherdir-"+base))
				must(t, os.Remove(in("new-"+base)))
				u.soon("a removed file in "+base, u.lacks("new-"+base))
				must(t, os.Mkdir(in("new-"+base), 0o755))
				u.soon("a directory where a file was in "+base, func() bool {
					fi, err := os.Stat(u.Path("new-" + base))
					return err == nil && fi.IsDir()
				})
				must(t, os.Remove(in("new-"+base)))
			}
			must(t, os.Remove(filepath.Join(u.lower, "gone")))
			u.soon("a removed lower file", u.lacks("gone"))
			must(t, os.Rename(filepath.Join(u.lower, "moved"), filepath.Join(u.lower, "d/in")))
			u.soon("a lower directory in another", u.shows("d/in/k", "content of moved/k"))
			u.soon("its old place", u.lacks("moved"))
			must(t, os.Remove(filepath.Join(u.lower, "type")))
			must(t, os.Symlink("f", filepath.Join(u.lower, "type")))
			u.soon("a symlink where a file was", u.shows("type", "content of f"))
		})
	}
}

// An open file whose name is moved, or replaced, underneath is still that file:
// what is written goes to it, or fails; it never goes to another.
func TestOpenFileMovedUnderneath(t *testing.T) {
	u := newUnderneath(t, "migrate", "", files("d/f", "d/g", "d/h"))
	open := func(name string) *os.File {
		f, err := os.OpenFile(u.Path(name), os.O_RDWR, 0)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	moved, replaced, dir := open("d/f"), open("d/g"), open("d/h")
	must(t, os.Rename(filepath.Join(u.lower, "d/f"), filepath.Join(u.lower, "d/f2")))
	put(t, filepath.Join(u.lower, "temp"), "another file")
	must(t, os.Rename(filepath.Join(u.lower, "temp"), filepath.Join(u.lower, "d/g")))
	for _, f := range []*os.File{moved, replaced} {
		b := make([]byte, 20)
		n, err := f.ReadAt(b, 0)
		if want := "content of " + strings.TrimPrefix(f.Name(), u.Dir+"/"); string(b[:n]) != want {
			t.Errorf("%s: %q, %v", f.Name(), b[:n], err)
		}
		if _, err := f.WriteAt([]byte("WRITTEN"), 0); err != nil && !errors.Is(err, unix.ESTALE) {
			t.Errorf("write to %s: %v", f.Name(), err)
		} else {
			t.Logf("write to %s: %v", filepath.Base(f.Name()), err)
		}
	}
	u.soon("the other file", u.shows("d/g", "another file"))
	must(t, os.Rename(filepath.Join(u.lower, "d"), filepath.Join(u.lower, "e")))
	if _, err := dir.WriteAt([]byte("WRITTEN"), 0); err != nil && !errors.Is(err, unix.ESTALE) {
		t.Errorf("write below a moved directory: %v", err)
	}
	u.soon("the directory's new name", func() bool {
		_, err := os.Stat(u.Path("e/h"))
		return err == nil
	})
}

// Where the part of a directory that lies above is taken away, or the one below moved,
// the other is a directory of its own.
func TestUpperDirectoryTakenAway(t *testing.T) {
	for _, mode := range []string{"migrate", "overlay"} {
		t.Run(mode, func(t *testing.T) {
			more := ""
			if mode == "overlay" {
				more = ",attr_timeout=1,entry_timeout=1"
			}
			u := newUnderneath(t, mode, more, files("gone/f", "moved/f"))
			for _, d := range []string{"gone", "moved"} {
				must(t, os.WriteFile(u.Path(d+"/new"), nil, 0o644))
				must(t, os.Remove(u.Path(d+"/new")))
				must(t, unix.Lstat(filepath.Join(u.upper, d), &unix.Stat_t{})) // it has come up
			}
			must(t, os.RemoveAll(filepath.Join(u.upper, "gone")))
			must(t, os.Rename(filepath.Join(u.lower, "moved"), filepath.Join(u.lower, "elsewhere")))
			has := func(dir string, n int) func() bool {
				return func() bool {
					names, err := os.ReadDir(u.Path(dir))
					return err == nil && len(names) == n
				}
			}
			u.soon("a directory of which the part above is taken away", has("gone", 1))
			u.soon("what the lower's directory is called now", has("elsewhere", 1))
			u.soon("the directory above that has lost what was below", has("moved", 0))
			for _, name := range []string{"gone", "elsewhere"} {
				if b, err := os.ReadFile(u.Path(name + "/f")); err != nil || len(b) == 0 {
					t.Errorf("%s/f holds %q: %v", name, b, err)
				}
			}
		})
	}
}

// ls, find and du run while others make, move and remove in the layers and in the
// mount. They may miss what comes and goes; they see no circles, nothing broken,
// and everything that stays.
func TestWalksWhileLayersChange(t *testing.T) {
	for _, mode := range []string{"migrate", "overlay"} {
		t.Run(mode, func(t *testing.T) {
			more := ""
			if mode == "overlay" {
				// Without metacopies: the data of one that is taken away below is gone,
				// and what is left of it is EIO, as on the kernel's overlayfs.
				more = ",attr_timeout=1,entry_timeout=1,metacopy=off"
			}
			u := newUnderneath(t, mode, more, func(t *testing.T, lower string) {
				for i := range 5 {
					files(fmt.Sprintf("stay%d/a/x", i), fmt.Sprintf("stay%d/y", i))(t, lower)
				}
			})
			where := []string{u.lower, u.Dir}
			if mode == "migrate" {
				where = append(where, u.upper)
			}
			stop := make(chan struct{})
			var all sync.WaitGroup
			for w, root := range where {
				all.Go(func() { disturb(root, w, stop) })
			}
			for range 5 {
				for _, c := range [][]string{{"ls", "-lR"}, {"find", ".", "-ls"}, {"du", "-a"}, {"find", ".", "-type", "f", "-exec", "cat", "{}", "+"}} {
					walk(t, u.Dir, c)
				}
			}
			close(stop)
			all.Wait()
			var out []byte
			u.soon("a whole tree, when all is quiet,", func() bool {
				var err error
				out, err = exec.Command("ls", "-lR", u.Dir).CombinedOutput()
				return err == nil
			})
			if t.Failed() {
				low, _ := exec.Command("ls", "-lRi", u.lower, u.upper).CombinedOutput()
				t.Logf("%s\n%s", out, low)
			}
		})
	}
}

// cameAndWent are errors about files that were replaced or removed between two
// looks at them, as on any filesystem. The last is the kernel's own (d_splice_alias):
// a directory was moved into another that it still remembers to be in the first, as it
// can happen on NFS.
var cameAndWent = []string{"No such file", "Stale file handle", "Is a directory", "Not a directory", "Invalid argument",
	"Too many levels of symbolic links"}

// walk runs a command that walks the tree and judges what it prints.
func walk(t *testing.T, dir string, command []string) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run() // fails for what came and went
	for line := range strings.SplitSeq(strings.TrimSpace(errs.String()), "\n") {
		if line != "" && !slices.ContainsFunc(cameAndWent, func(s string) bool { return strings.Contains(line, s) }) {
			t.Errorf("%v: %s", command, line)
		}
	}
	if strings.Contains(errs.String(), "fts_read") || cmd.ProcessState.ExitCode() == -1 && command[0] == "du" {
		return // the directory it was in has gone: it gives up, or aborts, on ext4 too
	}
	if command[0] == "find" && command[2] == "-ls" || command[0] == "du" {
		for i := range 5 {
			for _, name := range []string{fmt.Sprintf("stay%d/a/x", i), fmt.Sprintf("stay%d/y", i)} {
				if !strings.Contains(out.String(), "./"+name+"\n") {
					t.Errorf("%v has not seen %s: %v\n%s%s", command, name, err, errs.String(), out.String())
				}
			}
		}
	}
}

// disturb makes, moves and removes below root until it is stopped.
func disturb(root string, w int, stop <-chan struct{}) {
	r := rand.New(rand.NewPCG(uint64(w), 1))
	name := func() string {
		dirs := []string{"", "stay1/", "stay2/a/", "come0/", "come1/", "come2/in/"}
		return filepath.Join(root, dirs[r.IntN(len(dirs))]+fmt.Sprintf("come%d", r.IntN(4)))
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		time.Sleep(time.Millisecond)
		switch r.IntN(6) {
		case 0:
			_ = os.WriteFile(name(), []byte("come"), 0o644)
		case 1:
			_ = os.MkdirAll(filepath.Join(name(), "in"), 0o755)
		case 2:
			_ = os.Rename(name(), name())
		case 3:
			_ = os.RemoveAll(name())
		case 4:
			_ = os.Symlink("stay1", name())
		default:
			_ = os.Link(name(), name())
		}
	}
}
