package seed_test

import (
	"io"
	"log/slog"
	"testing"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/layertest"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/seed"
)

// TestLayer: with nothing seeded the layer is its inner layer, with everything
// seeded it is what the tree was.
func TestLayer(t *testing.T) {
	for _, seeded := range []bool{false, true} {
		name := "nothing seeded"
		if seeded {
			name = "all seeded"
		}
		t.Run(name, func(t *testing.T) {
			layertest.Run(t, layertest.Limits{Live: true, Fixed: seeded}, func(t *testing.T, source string) layers.Layer {
				inner, err := local.Open(source, local.Config{})
				if err != nil {
					t.Fatal(err)
				}
				var s seed.Seed
				if seeded {
					addAll(t, inner, layers.Root, &s)
				}
				l, err := seed.New(t.Context(), seed.Config{Seed: s, Inner: inner, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = l.Close() })
				return l
			})
		})
	}
}

// addAll seeds everything below p.
func addAll(t *testing.T, l layers.Layer, p layers.Path, s *seed.Seed) {
	t.Helper()
	entries, err := l.ReadDir(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		q := p.Join(e.Name)
		a, err := l.Stat(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		s.Entries = append(s.Entries, seed.Entry{Path: q, Mode: a.Mode, ModeKnown: true, Size: a.Size, SizeKnown: a.IsRegular()})
		if a.IsDir() {
			addAll(t, l, q, s)
		}
	}
}
