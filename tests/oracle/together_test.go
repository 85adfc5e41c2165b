package oracle

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestTogether has several workers do random things to the same names at once.
// What each sees depends on the others; that no operation fails in a way that a
// plain directory never does, that what is seen in the end is whole, and that it
// is the same after a remount does not.
func TestTogether(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, mode, 0, "higher", "lowest")
			var wg sync.WaitGroup
			var mu sync.Mutex
			strange := map[string]bool{}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			for i := range 6 {
				wg.Go(func() {
					s := &side{name: fmt.Sprint("worker ", i), root: w.ours.root}
					defer s.closeAll()
					for _, o := range generate(rand.New(rand.NewPCG(seed, uint64(i))), 700) {
						if got := s.apply(o); impossible(got) {
							mu.Lock()
							strange[o.kind+" -> "+got] = true
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
			for s := range strange {
				t.Error(s)
			}
			before := w.ours.whole()
			for p, d := range before {
				if strings.Contains(d, "d_ino of") || impossible(d) {
					t.Errorf("%s: %s", p, d)
				}
			}
			w.remount()
			if diff := differ(before, w.ours.whole()); len(diff) > 0 {
				t.Errorf("before and after a remount:\n\t%s", strings.Join(diff, "\n\t"))
			}
			w.m.Unmount()
			if mode == "overlay" {
				for _, l := range w.layers {
					testbed.Same(t, l, w.lowers[l], l+" afterwards", testbed.Snapshot(t, w.path(l), testbed.Usual|testbed.Mtime|testbed.Numbers))
				}
			}
			if problem := w.checkNothingLeft(); problem != "" {
				t.Error(problem)
			}
			if t.Failed() {
				t.Log(w.m.Log())
			}
		})
	}
}

// impossible reports results that no race between programs explains.
func impossible(result string) bool {
	for _, errno := range []string{"EIO", "ESTALE", "ENOSYS", "ENOTCONN", "EINTR"} {
		if result == errno {
			return true
		}
	}
	return false
}
