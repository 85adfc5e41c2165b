package oracle

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Environment: MIGRATEFS_ORACLE_SEED replays one sequence (with -run naming the
// test), MIGRATEFS_ORACLE_SECONDS is how long each test goes on with new seeds,
// MIGRATEFS_ORACLE_SHRINK=1 looks for the shortest sequence that still fails, and
// MIGRATEFS_ORACLE_OPTIONS, as hosts=single, is given to each mount as well.
const (
	seedEnv    = "MIGRATEFS_ORACLE_SEED"
	secondsEnv = "MIGRATEFS_ORACLE_SECONDS"
	shrinkEnv  = "MIGRATEFS_ORACLE_SHRINK"
	optionsEnv = "MIGRATEFS_ORACLE_OPTIONS"
)

// steps is the length of one sequence; the mount is made anew in its middle, and at
// times elsewhere, also after the daemon was killed.
const steps = 400

func TestOverlayOneLower(t *testing.T)  { random(t, "overlay", "lowest") }
func TestOverlayTwoLowers(t *testing.T) { random(t, "overlay", "middle", "lowest") }
func TestOverlayWornLower(t *testing.T) { random(t, "overlay", "worn", "lowest") }
func TestMigrateOneLower(t *testing.T)  { random(t, "migrate", "lowest") }
func TestMigrateTwoLowers(t *testing.T) { random(t, "migrate", "higher", "lowest") }

// random runs sequences until the time is over.
func random(t *testing.T, mode string, layers ...string) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	if s := os.Getenv(seedEnv); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		one(t, seed, mode, layers)
		return
	}
	seconds := 10
	if s := os.Getenv(secondsEnv); s != "" {
		var err error
		seconds, err = strconv.Atoi(s)
		must(t, err)
	}
	n := 0
	for end := time.Now().Add(time.Duration(seconds) * time.Second); !t.Failed() && (n == 0 || time.Now().Before(end)); n++ {
		one(t, rand.Uint64(), mode, layers)
	}
	t.Logf("%d sequences of %d operations", n, steps)
}

func one(t *testing.T, seed uint64, mode string, layers []string) {
	r := rand.New(rand.NewPCG(seed, 0))
	ops := generate(r, steps)
	ops[steps/2] = op{kind: "remount"}
	for range r.IntN(4) {
		ops[r.IntN(steps)] = op{kind: []string{"remount", "kill"}[r.IntN(2)]}
	}
	problem := play(t, seed, ops, mode, layers)
	if problem == "" {
		return
	}
	t.Errorf("seed %d (replay: %s=%d go test -run '%s$' ./tests/oracle):\n%s", seed, seedEnv, seed, t.Name(), problem)
	if os.Getenv(shrinkEnv) != "" {
		shrink(t, seed, ops, mode, layers)
	}
}

// shrink takes operations out as long as the sequence fails without them.
func shrink(t *testing.T, seed uint64, ops []op, mode string, layers []string) {
	class := classOf(play(t, seed, ops, mode, layers))
	for size := len(ops) / 2; size > 0; {
		fewer := without(t, seed, ops, size, class, mode, layers)
		if len(fewer) == len(ops) || size > 1 {
			size /= 2
		}
		ops = fewer
	}
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintf(&b, "\t%v\n", o)
	}
	t.Errorf("shortest:\n%s%s", b.String(), play(t, seed, ops, mode, layers))
}

// without returns ops without every run of size operations that is not needed to
// fail in the same way.
func without(t *testing.T, seed uint64, ops []op, size int, class, mode string, layers []string) []op {
	for i := 0; i+size <= len(ops); {
		fewer := append(append([]op(nil), ops[:i]...), ops[i+size:]...)
		if classOf(play(t, seed, fewer, mode, layers)) == class {
			ops = fewer
		} else {
			i += size
		}
	}
	return ops
}

// classOf is which of the checks failed.
func classOf(problem string) string {
	for _, c := range []string{"ours: ", "in the end", "after a remount", "has changed", "kernel's view", "merged:", "removing everything", "still on disk"} {
		if strings.Contains(problem, c) {
			return c
		}
	}
	return problem
}

// play applies ops to a new world and returns how ours differed, or "".
func play(t *testing.T, seed uint64, ops []op, mode string, layers []string) (problem string) {
	t.Run("sequence", func(t *testing.T) { problem = playIn(newWorld(t, mode, seed, layers...), ops) })
	return problem
}

func playIn(w *world, ops []op) string {
	defer w.end()
	if diff := differ(w.whole(w.plain), w.whole(w.ours)); len(diff) > 0 {
		return "before anything was done, plain and ours:\n\t" + strings.Join(diff, "\n\t")
	}
	var log []string
	for _, o := range ops {
		if o.kind == "remount" || o.kind == "kill" {
			for _, s := range w.sides() {
				s.closeAll()
			}
			if o.kind == "kill" {
				w.m.Kill()
				w.m.RemoveDead()
				w.mount()
			} else {
				w.remount()
			}
			log = append(log, o.kind)
			continue
		}
		o = w.spared(o)
		problem, said := w.step(o)
		log = append(log, fmt.Sprintf("%v -> %s", o, said))
		if problem != "" {
			return strings.Join(log[max(0, len(log)-25):], "\n") + "\n" + problem + w.complaints()
		}
	}
	if diff := differ(w.whole(w.plain), w.whole(w.ours)); len(diff) > 0 {
		return strings.Join(log[max(0, len(log)-10):], "\n") + "\nin the end, plain and ours:\n\t" + strings.Join(diff, "\n\t")
	}
	for _, s := range w.sides() {
		s.closeAll()
	}
	w.remount()
	if diff := differ(w.whole(w.plain), w.whole(w.ours)); len(diff) > 0 {
		return "after a remount, plain and ours:\n\t" + strings.Join(diff, "\n\t")
	}
	w.m.Unmount()
	check := w.checkLowers
	if w.migrates() {
		check = w.checkMerge
	}
	if problem := check(); problem != "" {
		return problem
	}
	return w.checkNothingLeft()
}

// complaints is the end of what the daemon said.
func (w *world) complaints() string {
	lines := strings.Split(strings.TrimSpace(w.m.Log()), "\n")
	return "\ndaemon:\n\t" + strings.Join(lines[max(0, len(lines)-5):], "\n\t")
}

// checkNothingLeft removes all that the mount shows, and looks for what is left
// of it on disk.
func (w *world) checkNothingLeft() string {
	w.mount()
	entries, err := os.ReadDir(w.m.Dir)
	must(w.t, err)
	for _, e := range entries {
		if err := os.RemoveAll(w.m.Path(e.Name())); err != nil {
			return fmt.Sprintf("removing everything: %v", err)
		}
	}
	w.m.Unmount()
	var left []string
	look := func(root string, mine func(rel string, st *unix.Stat_t) bool) {
		w.walk(root, func(rel string, st *unix.Stat_t) {
			if !mine(rel, st) {
				left = append(left, filepath.Join(filepath.Base(root), rel))
			}
		})
	}
	isDir := func(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
	// A file with names that a higher layer hides never loses its last one.
	worn := func(rel string) bool {
		return slices.Contains(w.layers, "worn") && (strings.Contains(rel, "index/") || strings.HasPrefix(rel, "links/"))
	}
	if w.migrates() {
		for _, l := range append([]string{"upper"}, w.layers...) {
			look(w.path(l), func(rel string, st *unix.Stat_t) bool {
				ours := strings.HasPrefix(rel, ".migratefs") && isDir(st) || rel == ".migratefs/id"
				return rel == "." || ours || l == "upper" && worn(rel)
			})
		}
	} else {
		look(w.path(".upper.migratefs"), func(rel string, st *unix.Stat_t) bool {
			return isDir(st) || rel == "whiteout" || worn(rel)
		})
		look(w.path("upper"), func(rel string, st *unix.Stat_t) bool {
			return rel == "." || st.Mode&unix.S_IFMT == unix.S_IFCHR && !strings.Contains(rel, "/")
		})
	}
	if len(left) == 0 {
		return ""
	}
	return "everything was removed, and is still on disk:\n\t" + strings.Join(left, "\n\t")
}

var nlink = regexp.MustCompile(` nlink=\d+`)

// seen leaves out what cannot be the same: a hard-linked lower file counts its
// names that a higher layer hides, as with the kernel's overlayfs.
func (w *world) seen(result string) string {
	if slices.Contains(w.layers, "worn") {
		return nlink.ReplaceAllString(result, "")
	}
	return result
}

func (w *world) whole(s *crew) map[string]string {
	tree := s.whole()
	for p, d := range tree {
		tree[p] = w.seen(d)
	}
	return tree
}

// step does one operation everywhere.
func (w *world) step(o op) (problem, said string) {
	ours := w.seen(w.ours.apply(o))
	if why := refused(w, o, ours); why != "" {
		return "", ours + " (" + why + ")"
	}
	plain := w.seen(w.plain.apply(o))
	kernel := plain
	if w.kernel != nil {
		kernel = w.seen(w.kernel.apply(o))
	}
	if ours == plain {
		return "", ours
	}
	if ours == kernel {
		if why := likeKernel(o, ours, plain); why != "" {
			return "", ours + " (" + why + ")"
		}
	}
	return fmt.Sprintf("ours:   %s\nplain:  %s\nkernel: %s", ours, plain, kernel), ours
}

// refused is the table of what ours refuses and a plain directory would do: the
// operation is then left out on the other sides.
func refused(w *world, o op, ours string) string {
	switch {
	case o.renames() && ours == "EXDEV" && w.migrates() && !strings.Contains(w.mode, "hosts=single") && w.plain.hasDir(o):
		return "a directory that lies in several layers is not moved in migrate mode: mv copies"
	case o.kind == "mknod" && ours == "EPERM" && !w.migrates():
		return "a whiteout is not a user's to make, as the kernel's overlayfs has it"
	case ours == "ENOENT" && (o.kind == "dirchmod" || o.kind == "dirsetxattr" || o.kind == "dirtimes"):
		return "a removed directory that lay in a lower has no place for what is changed of it (TestRemovedBelow)"
	case o.renames() && ours == "EINVAL" && o.flags == unix.RENAME_WHITEOUT:
		return "a whiteout is not a user's to make, as the kernel's overlayfs has it"
	}
	return ""
}

// spared is o without suid and sgid for a file that is open: what root writes through
// such an opening takes them off (docs/semantics.md, TestBitsSetWhileOpen), and in a
// plain directory it does not.
func (w *world) spared(o op) op {
	if o.kind == "fchmod" || o.kind == "chmod" && w.plain.holds(o.path) {
		o.mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return o
}

func (o op) renames() bool { return o.kind == "rename" || o.kind == "dirrename" || o.kind == "dirinto" }

// hasDir reports whether an end of the rename o is a directory.
func (c *crew) hasDir(o op) bool {
	o.kind, o.uid = "dirs of "+o.kind, 0
	return c.apply(o) != ""
}

// likeKernel is the table of where ours differs from a plain directory and is as
// the kernel's overlayfs.
func likeKernel(op, string, string) string { return "" }

// checkLowers compares the lowers with what they were, and the upper as the
// kernel's overlayfs shows it with the plain directory.
func (w *world) checkLowers() string {
	for _, l := range w.layers {
		now := testbed.Snapshot(w.t, w.path(l), testbed.Usual|testbed.Mtime|testbed.Numbers)
		if diff := w.lowers[l].Diff(now); len(diff) > 0 {
			return "the lower " + l + " has changed:\n\t" + strings.Join(diff, "\n\t")
		}
	}
	dirs := make([]string, len(w.layers))
	for i, l := range w.layers {
		dirs[i] = w.path(l)
	}
	at := w.path("kcopy", "check")
	must(w.t, os.Mkdir(at, 0o755))
	opts := "redirect_dir=on,metacopy=on,index=on,xino=on,lowerdir=" + strings.Join(dirs, ":") +
		",upperdir=" + w.path("upper") + ",workdir=" + w.path(".upper.migratefs")
	if err := mountOverlay(at, opts); err != nil {
		return fmt.Sprintf("the kernel cannot mount what ours left: %v", err)
	}
	defer func() { _ = unix.Unmount(at, 0) }()
	aspects := testbed.Usual
	if slices.Contains(w.layers, "worn") {
		aspects = testbed.Xattrs // a higher layer hides hard links
	}
	return compareTrees(w.t, w.path("plain"), "the kernel's view of what ours left", at, aspects)
}

func (w *world) walk(root string, f func(rel string, st *unix.Stat_t)) {
	must(w.t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		rel, _ := filepath.Rel(root, path)
		f(rel, &st)
		return err
	}))
}

// checkMerge merges what migrate mode left with the kernel's overlayfs, and compares. Left out are
// names that stand in a lower only, of files with several: when the file came up
// under another name, only our index leads from them to the copy, until they are
// used or all is drained.
func (w *world) checkMerge() string {
	at := w.path("kcopy", "merged")
	must(w.t, os.Mkdir(at, 0o755))
	lower := w.path("upper")
	for _, l := range w.layers {
		lower += ":" + w.path(l)
	}
	// With userxattr it takes no notice of trusted.overlay.*, which in this mode
	// is the user's.
	must(w.t, mountOverlay(at, "userxattr,xino=on,lowerdir="+lower))
	defer func() { _ = unix.Unmount(at, 0) }()
	skip := []string{".migratefs"}
	w.walk(w.path("plain"), func(rel string, st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			skip = append(skip, rel) // a device like any other, but to the kernel's overlayfs
		}
	})
	for _, l := range w.layers {
		w.walk(w.path(l), func(rel string, st *unix.Stat_t) {
			var up unix.Stat_t
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR && unix.Lstat(w.path("upper", rel), &up) != nil {
				skip = append(skip, rel)
			}
		})
	}
	return compareTrees(w.t, w.path("plain"), "what migrate mode left, merged", at, testbed.Xattrs, skip...)
}

func compareTrees(t testing.TB, plain, what, other string, aspects testbed.Aspect, skip ...string) string {
	diff := testbed.Snapshot(t, plain, aspects, skip...).Diff(testbed.Snapshot(t, other, aspects, skip...))
	if len(diff) == 0 {
		return ""
	}
	return "the plain directory and " + what + ":\n\t" + strings.Join(diff, "\n\t")
}
