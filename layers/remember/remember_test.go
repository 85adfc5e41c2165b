package remember

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/layertest"
	"github.com/migratefs/migratefs/layers/local"

	"os"
	"path/filepath"
)

// flaky is a layer that can be unplugged.
type flaky struct {
	layers.Layer
	off bool
}

func (f *flaky) gone() error {
	if f.off {
		return layers.ErrOffline
	}
	return nil
}

func (f *flaky) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	if f.off {
		return layers.Attr{}, layers.ErrOffline
	}
	return f.Layer.Stat(ctx, p)
}

func (f *flaky) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	if f.off {
		return nil, layers.ErrOffline
	}
	return f.Layer.ReadDir(ctx, p)
}

func (f *flaky) Readlink(ctx context.Context, p layers.Path) (string, error) {
	if f.off {
		return "", layers.ErrOffline
	}
	return f.Layer.Readlink(ctx, p)
}

// unplugged is flaky that says so beforehand.
type unplugged struct{ *flaky }

func (u unplugged) Offline() error { return u.gone() }

func site(t *testing.T) (dir string, f *flaky) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range map[string]string{"d/seen": "1", "d/unseen": "22", "e/x": "3"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("seen", filepath.Join(dir, "d/link")); err != nil {
		t.Fatal(err)
	}
	inner, err := local.Open(dir, local.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return dir, &flaky{Layer: inner}
}

func TestAnswersWhileAway(t *testing.T) {
	for _, kind := range []string{"by error", "by Offliner"} {
		t.Run(kind, func(t *testing.T) {
			_, f := site(t)
			var inner layers.Layer = f
			if kind == "by Offliner" {
				inner = unplugged{f}
			}
			l, ctx := New(inner, Config{}), context.Background()
			for _, p := range []layers.Path{"", "d", "d/seen", "d/link", "e"} {
				if _, err := l.Stat(ctx, p); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := l.ReadDir(ctx, "d"); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Readlink(ctx, "d/link"); err != nil {
				t.Fatal(err)
			}
			f.off = true

			if a, err := l.Stat(ctx, "d/seen"); err != nil || a.Size != 1 {
				t.Errorf("what was seen: %v, %v", a.Size, err)
			}
			if _, err := l.Stat(ctx, "d/unseen"); !errors.Is(err, layers.ErrOffline) {
				t.Errorf("listed but not looked at: %v, want offline", err)
			}
			if _, err := l.Stat(ctx, "d/absent"); !errors.Is(err, unix.ENOENT) {
				t.Errorf("not in the listing: %v, want ENOENT", err)
			}
			if _, err := l.Stat(ctx, "e/absent"); !errors.Is(err, layers.ErrOffline) {
				t.Errorf("in a directory that was never listed: %v, want offline", err)
			}
			if es, err := l.ReadDir(ctx, "d"); err != nil || len(es) != 3 {
				t.Errorf("listing: %d entries, %v", len(es), err)
			}
			if _, err := l.ReadDir(ctx, "e"); !errors.Is(err, layers.ErrOffline) {
				t.Errorf("listing never seen: %v, want offline", err)
			}
			if s, err := l.Readlink(ctx, "d/link"); err != nil || s != "seen" {
				t.Errorf("symlink: %q, %v", s, err)
			}
		})
	}
}

// TestForgetsWhatWent: what the storage says last counts.
func TestForgetsWhatWent(t *testing.T) {
	dir, f := site(t)
	l, ctx := New(f, Config{}), context.Background()
	if _, err := l.Stat(ctx, "d/seen"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "d/seen")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Stat(ctx, "d/seen"); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	f.off = true
	if _, err := l.Stat(ctx, "d/seen"); !errors.Is(err, layers.ErrOffline) {
		t.Errorf("removed there, then away: %v, want offline", err)
	}
}

// TestLayer: also with what was remembered, the layer is what the tree is.
func TestLayer(t *testing.T) {
	for _, cfg := range []Config{{}, {Keep: Forever, Absent: Forever}} {
		layertest.Run(t, layertest.Limits{Live: true}, func(t *testing.T, dir string) layers.Layer {
			inner, err := local.Open(dir, local.Config{})
			if err != nil {
				t.Fatal(err)
			}
			return New(inner, cfg)
		})
	}
}
