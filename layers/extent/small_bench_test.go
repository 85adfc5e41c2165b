package extent

import (
	"fmt"
	"testing"
)

// BenchmarkSmallFiles is what a small file costs: New when it is fetched and kept,
// Again when it is opened and read once more.
func BenchmarkSmallFiles(b *testing.B) {
	src := &source{content: noise(3000, 1)}
	s := openStore(b, b.TempDir(), bootA)
	buf := make([]byte, 4096)
	read := func(i int) {
		f := sourceOf(src.content)
		f.Path = f.Path.Join(fmt.Sprint(i))
		o, err := s.Cached(f)
		must(b, err)
		_, _ = o.ReadAt(ctx, src, buf, 0)
		must(b, o.Close())
		src.asked = nil
	}
	b.Run("New", func(b *testing.B) {
		for i := range b.N {
			read(i)
		}
	})
	b.Run("Again", func(b *testing.B) {
		read(0)
		b.ResetTimer()
		for range b.N {
			read(0)
		}
	})
	kill(s)
}
