package main

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount that fails takes its cache directory away again, and leaves it to who has
// begun to use it meanwhile.
func TestCacheOfAMountThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	open := func() *stack {
		t.Helper()
		st := &stack{o: &options{cacheDir: dir}}
		if err := st.openCache(t.Context(), ""); err != nil {
			t.Error(err)
		}
		return st
	}
	alone := open()
	if err := os.Mkdir(filepath.Join(alone.cache.Name(), "objects"), 0o700); err != nil {
		t.Fatal(err)
	}
	alone.abandon()
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("what nobody else uses is left: %v", err)
	}

	first, second := open(), open()
	object := filepath.Join(second.cache.Name(), "object")
	if err := os.WriteFile(object, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first.abandon()
	if _, err := os.Lstat(object); err != nil {
		t.Errorf("what another mount uses: %v", err)
	}
	second.unlock()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}

	// Whoever comes while others fail has a directory that is in its place, and stays there.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				st := open()
				var mine, now unix.Stat_t
				if st.cache == nil || unix.Fstat(int(st.cache.Fd()), &mine) != nil || unix.Stat(st.cache.Name(), &now) != nil || mine.Ino != now.Ino {
					t.Error("the cache directory was taken away under a mount")
				}
				st.abandon()
			}
		})
	}
	all.Wait()
}
