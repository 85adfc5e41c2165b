package oracle

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// world is one set of layers, ours mounted over them, and what it is compared
// with: a plain directory that began as a copy of the merged tree and, for the
// overlay mode, the kernel's overlayfs over a copy of the layers.
type world struct {
	t      testing.TB
	dir    string
	mode   string
	layers []string // lowers by name, highest first
	m      *testbed.Mounted
	ours   *crew
	plain  *crew
	kernel *crew // nil in migrate mode
	lowers map[string]*testbed.Tree
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

func newWorld(t testing.TB, mode string, seed uint64, layers ...string) *world {
	w := &world{t: t, dir: testbed.TempDir(t), mode: mode, layers: layers, lowers: map[string]*testbed.Tree{}}
	for _, d := range []string{"ours", "upper", "kernel", "kupper", "kwork", "plain", "kcopy"} {
		must(t, os.Mkdir(w.path(d), 0o777))
		must(t, os.Chmod(w.path(d), 0o777))
	}
	for _, l := range slices.Backward(layers) {
		must(t, os.Mkdir(w.path(l), 0o777))
		must(t, os.Chmod(w.path(l), 0o777))
		if l == "worn" {
			w.wear(seed)
		} else {
			populate[l](t, w.path(l))
		}
		settle(t, w.path(l))
		testbed.Run(t, "cp", "-a", w.path(l), w.path("kcopy", l))
	}
	settle(t, w.path("upper"))
	settle(t, w.path("kupper"))
	for _, l := range layers {
		w.lowers[l] = testbed.Snapshot(t, w.path(l), testbed.Usual|testbed.Mtime|testbed.Numbers)
	}
	w.mountKernel()
	testbed.Run(t, "rmdir", w.path("plain"))
	testbed.Run(t, "cp", "-a", w.path("kernel"), w.path("plain"))
	settle(t, w.path("plain"))
	w.plain = newCrew(t, "plain", w.path("plain"))
	if w.migrates() {
		must(t, unix.Unmount(w.path("kernel"), 0))
	} else {
		w.kernel = newCrew(t, "kernel", w.path("kernel"))
	}
	w.ours = newCrew(t, "ours", w.path("ours"))
	w.mount()
	return w
}

// wear makes the layer "worn": the upper that the kernel's overlayfs over the
// layer "lowest" has after random work.
func (w *world) wear(seed uint64) {
	for _, d := range []string{"wear", "wearwork"} {
		must(w.t, os.Mkdir(w.path(d), 0o777))
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on,metacopy=on,index=off,xino=on",
		w.path("lowest"), w.path("worn"), w.path("wearwork"))
	if err := mountOverlay(w.path("wear"), opts); err != nil {
		w.t.Fatalf("overlayfs %s: %v", opts, err)
	}
	s := &side{name: "wear", root: w.path("wear")}
	for _, o := range generate(rand.New(rand.NewPCG(seed, 1)), 200) {
		s.apply(o)
	}
	s.closeAll()
	must(w.t, unix.Unmount(w.path("wear"), 0))
}

// mountOverlay mounts the kernel's overlayfs. A namespace that somebody else made
// meanwhile (another package's test) has a copy of what was unmounted here, and
// keeps the upper in use until it ends.
func mountOverlay(at, options string) (err error) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if err = unix.Mount("overlay", at, "overlay", 0, options); err != unix.EBUSY || time.Now().After(end) {
			return err
		}
	}
}

// mountKernel mounts the kernel's overlayfs over the copy of the layers.
func (w *world) mountKernel() {
	lower := ""
	for i, l := range w.layers {
		if i > 0 {
			lower += ":"
		}
		lower += w.path("kcopy", l)
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on,metacopy=on,index=on,xino=on",
		lower, w.path("kupper"), w.path("kwork"))
	if err := mountOverlay(w.path("kernel"), opts); err != nil {
		w.t.Fatalf("overlayfs %s: %v", opts, err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(w.path("kernel"), unix.MNT_DETACH) })
}

func (w *world) migrates() bool { return strings.HasPrefix(w.mode, "migrate") }

func (w *world) mount() {
	opts := "mode=" + w.mode + ",upperdir=" + w.path("upper")
	for _, l := range w.layers {
		opts += ",lowerdir+=" + w.path(l)
	}
	if more := os.Getenv(optionsEnv); more != "" {
		opts += "," + more
	}
	w.m = testbed.Mount(w.t, opts, w.path("ours"))
}

func (w *world) remount() {
	w.ours.closeAll()
	w.m.Unmount()
	w.mount()
}

func (w *world) sides() []*crew {
	if w.kernel == nil {
		return []*crew{w.ours, w.plain}
	}
	return []*crew{w.ours, w.plain, w.kernel}
}

func (w *world) end() {
	for _, s := range w.sides() {
		s.dismiss()
	}
	w.m.Unmount()
	if w.kernel != nil {
		must(w.t, unix.Unmount(w.path("kernel"), unix.MNT_DETACH))
		w.kernel = nil
	}
}

// settle gives every file of a tree a time of its own, long ago.
func settle(t testing.TB, dir string) {
	t.Helper()
	testbed.Run(t, "find", dir, "-depth", "-exec", "touch", "-h", "-d", "2001-02-03 04:05:06.789 UTC", "{}", "+")
}

// populate fills layers.
var populate = map[string]func(t testing.TB, dir string){
	"lowest": func(t testing.TB, dir string) {
		for _, d := range []string{"a", "a/b", "a/b/c", "b", "b/a", "b/b", "c", "c/d", "d"} {
			must(t, os.Mkdir(filepath.Join(dir, d), 0o777))
			must(t, os.Chmod(filepath.Join(dir, d), 0o777))
		}
		for i, f := range []string{"e", "f", "a/e", "a/f", "a/b/e", "a/b/f", "a/b/c/g", "b/e", "b/a/e", "c/e", "c/d/e", "d/g"} {
			file(t, filepath.Join(dir, f), i)
		}
		must(t, os.Link(filepath.Join(dir, "a/e"), filepath.Join(dir, "b/g")))
		must(t, os.Link(filepath.Join(dir, "a/e"), filepath.Join(dir, "c/g")))
		must(t, os.Link(filepath.Join(dir, "f"), filepath.Join(dir, "a/b/g")))
		must(t, os.Symlink("f", filepath.Join(dir, "c/f")))
		must(t, os.Symlink("b", filepath.Join(dir, "c/b")))
		must(t, os.Symlink("e", filepath.Join(dir, "d/e")))
		must(t, os.Link(filepath.Join(dir, "d/e"), filepath.Join(dir, "d/f")))
		must(t, os.Chmod(filepath.Join(dir, "b"), 0o777|os.ModeSetgid))
		must(t, os.Chown(filepath.Join(dir, "b"), 0, 500))
		must(t, os.Chmod(filepath.Join(dir, "e"), 0o777|os.ModeSetuid))
		must(t, unix.Setxattr(filepath.Join(dir, "e"), "user.one", []byte("lower"), 0))
		must(t, unix.Setxattr(filepath.Join(dir, "a"), "user.two", []byte("lower"), 0))
		must(t, unix.Setxattr(filepath.Join(dir, "c"), "system.posix_acl_default", aclOf(5), 0))
		must(t, unix.Setxattr(filepath.Join(dir, "a/b/e"), "system.posix_acl_access", aclOf(4), 0))
		must(t, os.Chown(filepath.Join(dir, "a/b/f"), 1000, 1000))
	},
	"higher": fillHigher,
	"empty":  func(t testing.TB, dir string) { must(t, os.Mkdir(filepath.Join(dir, "n"), 0o755)) },
	// middle was an upper once.
	"middle": func(t testing.TB, dir string) {
		fillHigher(t, dir)
		must(t, os.Mkdir(filepath.Join(dir, "c"), 0o777))
		for _, white := range []string{"d", "b/b", "a/b/c", "c/e", "c/nothing"} {
			must(t, unix.Mknod(filepath.Join(dir, white), unix.S_IFCHR, 0))
		}
		must(t, os.Mkdir(filepath.Join(dir, "b/a"), 0o755))
		file(t, filepath.Join(dir, "b/a/f"), 200)
		must(t, unix.Setxattr(filepath.Join(dir, "b/a"), "trusted.overlay.opaque", []byte("y"), 0))
		must(t, os.Rename(filepath.Join(dir, "c/nothing"), filepath.Join(dir, "c/d")))
	},
}

// fillHigher makes a layer that merges with lowest without hiding a hard link.
func fillHigher(t testing.TB, dir string) {
	for _, d := range []string{"a", "a/b", "b", "g", "g/a"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o777))
		must(t, os.Chmod(filepath.Join(dir, d), 0o777))
	}
	for i, f := range []string{"a/f", "a/b/e", "a/d", "b/f", "g/e", "g/a/e"} {
		file(t, filepath.Join(dir, f), 100+i)
	}
	must(t, os.Link(filepath.Join(dir, "g/e"), filepath.Join(dir, "a/g")))
}

// file makes a file whose content follows from seed: some with a hole, one
// empty.
func file(t testing.TB, path string, seed int) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Chmod(0o666))
	if seed%5 == 4 {
		return
	}
	b := make([]byte, 1000+seed*37)
	for i := range b {
		b[i] = byte(seed + i/100)
	}
	_, err = f.Write(b)
	must(t, err)
	if seed%3 == 0 {
		_, err = f.WriteAt(b, 12000)
		must(t, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
