package extent

import (
	"path/filepath"
	"testing"
)

// Who writes into a piece takes the sums of his boot with him when the power goes. What
// nobody vouched for in that boot keeps its own: it may be anything.
func TestOnlySumsOfTheBootAreGivenUp(t *testing.T) {
	src := &source{content: noise(8<<20, 1)}
	model := append([]byte(nil), src.content...)
	copy(model[100:], "mine")
	check := func(t *testing.T, dir string, id ID, damaged bool) {
		if damaged {
			must(t, poke(filepath.Join(dir, id.DataName()), 6<<20+5, 0))
		}
		for _, boot := range []string{"boot-ccccccccccc", "boot-ddddddddddd"} {
			s := openStore(t, dir, boot)
			o, err := s.Pending(id)
			must(t, err)
			want(t, boot, contentOf(t, o, src), model)
			must(t, o.Close())
			must(t, s.Close())
		}
	}
	write := func(t *testing.T, o *Object) {
		_, err := o.WriteAt([]byte("mine"), 100)
		must(t, err)
		must(t, o.Sync(false))
	}
	t.Run("of a former boot", func(t *testing.T) {
		for _, compacted := range []bool{false, true} {
			dir := t.TempDir()
			s := openStore(t, dir, bootA)
			o, id, err := s.NewPending(sourceOf(src.content))
			must(t, err)
			must(t, o.Fill(ctx, src, 0, 8<<20))
			must(t, o.Sync(false))
			kill(s, o)
			s = openStore(t, dir, bootB)
			o, err = s.Pending(id)
			must(t, err)
			write(t, o)
			if compacted {
				o.syncMu.Lock()
				o.wmu.Lock()
				must(t, o.compact())
				o.wmu.Unlock()
				o.syncMu.Unlock()
			}
			kill(s, o)
			check(t, dir, id, true)
		}
	})
	t.Run("of a copy", func(t *testing.T) {
		shared, dir := t.TempDir(), t.TempDir()
		cache, s := openShared(t, shared, bootA, 0), openStore(t, dir, bootA)
		from := cached(t, cache, sourceOf(src.content))
		must(t, from.Fill(ctx, src, 0, 8<<20))
		must(t, poke(filepath.Join(shared, from.name+dataSuffix), 6<<20+5, 0))
		id, err := s.Adopt(from)
		must(t, err)
		must(t, from.Close())
		must(t, cache.Close())
		o, err := s.Pending(id)
		must(t, err)
		write(t, o)
		kill(s, o)
		check(t, dir, id, false)
	})
}
