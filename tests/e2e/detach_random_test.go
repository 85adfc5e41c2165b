package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestDetachRandom: whatever is moved, made, written and removed before anything has come,
// a drain brings all that there is then, also if the daemon has died meanwhile. The same is done to a plain directory beside it.
// MIGRATEFS_DETACH_SEED is what is done.
func TestDetachRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MIGRATEFS_DETACH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("MIGRATEFS_DETACH_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newSource(t)
	for i := range 40 {
		dir := ""
		for range r.IntN(4) {
			dir = filepath.Join(dir, fmt.Sprint("d", r.IntN(4)))
		}
		must(t, os.MkdirAll(filepath.Join(s.dir, dir), 0o755))
		s.put(t, filepath.Join(dir, fmt.Sprint("f", i)), 1+r.IntN(9000))
	}
	plain := filepath.Join(s.local, "plain")
	testbed.Run(t, "cp", "-a", s.dir, plain)
	m := s.mount(t, ",fill=off,prefetch=off")
	// A directory that is there, or the name of a new one in it.
	some := func(isNew bool) string {
		var dirs []string
		must(t, filepath.WalkDir(plain, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() && (isNew || p != plain) {
				dirs = append(dirs, p[len(plain):])
			}
			return err
		}))
		if len(dirs) == 0 {
			return "none"
		}
		dir := dirs[r.IntN(len(dirs))]
		if isNew {
			dir = filepath.Join(dir, fmt.Sprint("d", r.IntN(6)))
		}
		return dir
	}
	for range 40 {
		op := r.IntN(12)
		a, b := some(op == 0), some(true)
		in := func(root string) error {
			a, b := filepath.Join(root, a), filepath.Join(root, b)
			switch op {
			case 0:
				return os.Mkdir(a, 0o755)
			case 1:
				if err := os.Rename(a, b); err != nil { // over an empty directory, or not
					return err
				}
				return os.RemoveAll(b)
			case 2:
				return os.WriteFile(filepath.Join(a, "made"), []byte(a[len(root):]), 0o644)
			case 3:
				return os.Symlink("there", filepath.Join(a, "link"))
			default:
				return os.Rename(a, b)
			}
		}
		there, here := in(plain), in(m.Path(""))
		if (there == nil) != (here == nil) {
			t.Fatalf("%d of %q and %q: %v, in a plain directory %v", op, a, b, here, there)
		}
	}
	if r.IntN(2) == 0 { // its daemon dies, perhaps in the middle of a drain
		drain, err := testbed.Start(exec.Command(testbed.Build(t), "drain", m.Path("")))
		must(t, err)
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		m.Kill()
		_ = drain.Wait()
		m.RemoveDead()
		m = s.mount(t, ",fill=off,prefetch=off")
	}
	command(t, 0, "drain", m.Path(""))
	command(t, 0, "detach", m.Path(""))
	s.sshd.Stop()
	want := testbed.Snapshot(t, plain, testbed.Usual)
	testbed.Same(t, "what was done", want, "detached", testbed.Snapshot(t, m.Path(""), testbed.Usual))
	m.Unmount()
	command(t, 0, "settle", s.upper())
	testbed.Same(t, "what was done", want, "settled", testbed.Snapshot(t, s.upper(), testbed.Usual))
}
