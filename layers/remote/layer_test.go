package remote

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func TestFirst(t *testing.T) {
	s := startSSHD(t)
	dir := t.TempDir()
	data := random(1, 5<<20+17)
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	l := open(t, s.layer(dir))
	ctx := context.Background()
	a, err := l.Stat(ctx, "f")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.Open(ctx, "f", &a)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if n, err := f.ReadAt(ctx, got, 0); n != len(got) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("content differs")
	}
	es, err := l.ReadDir(ctx, "")
	if err != nil || len(es) != 1 || es[0].Name != "f" || es[0].Attr == nil || es[0].Attr.Nlink != 1 {
		t.Fatal(es, err)
	}
	_, err = l.Stat(ctx, "none")
	t.Log(l.ID(), a, err, l.Stats())
}
