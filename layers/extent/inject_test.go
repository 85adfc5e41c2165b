package extent

import (
	"sync"
	"testing"

	"github.com/migratefs/migratefs/internal/sys"
)

// A fault makes changes fail.
type fault struct {
	mu   sync.Mutex
	n    int // changes seen
	hits int
}

// failing makes the n-th change (from 1) fail with err if which(n), until off is
// called.
func failing(t testing.TB, which func(n int) bool, err error) *fault {
	f := &fault{}
	sys.SetHook(func(sys.Change) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.n++
		if which(f.n) {
			f.hits++
			return err
		}
		return nil
	})
	t.Cleanup(f.off)
	return f
}

func (f *fault) off() { sys.SetHook(nil) }
