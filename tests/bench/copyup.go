package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// copyupLoads write the first byte to files that lie below, and sync them. The bare
// filesystem's part is cp --reflink=auto, and a sync of the copy.
func copyupLoads(size func(int) int) []*load {
	skip := func(k *kind) bool { return k.name == "mergerfs" || k.name == "go-fuse" }
	var all []*load
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		l := &load{name: "copyup-" + fstype, fstype: fstype, big: true, uncounted: true, skip: skip}
		files := []struct {
			name  string
			bytes int
		}{{"4 KiB", pageSize}, {"1 MiB", 1 << 20}, {"1 GiB", size(1024) << 20}}
		l.lower = func(dir string) error {
			for _, f := range files {
				if err := writeBig(filepath.Join(dir, f.name), f.bytes); err != nil {
					return err
				}
			}
			return nil
		}
		for _, f := range files {
			l.steps = append(l.steps, step{name: "first byte, synced, of " + f.name, ops: 1, writes: true, run: func(e *env) error {
				return comeUp(e, f.name)
			}})
		}
		all = append(all, l)
	}
	return append(all, manyCopies(size(50_000), skip))
}

// comeUp brings up one file and syncs it.
func comeUp(e *env, name string) error {
	p := filepath.Join(e.point, name)
	if e.kind.flat {
		if err := command("cp", "--reflink=auto", p, p+".copy"); err != nil {
			return err
		}
		return command("sync", p+".copy")
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		return err
	}
	return f.Sync()
}

// manyCopies writes to many small files, and then waits until all is durable and, in
// migrate mode, the lower copies are gone. ours-volatile shows what durability costs.
func manyCopies(files int, skip func(*kind) bool) *load {
	const inDir = 100
	name := func(dir string, i int) string {
		return filepath.Join(dir, fmt.Sprint("d", i/inDir), fmt.Sprint(i%inDir))
	}
	return &load{
		name: "copyup-many", uncounted: true, skip: func(k *kind) bool { return k.flat || skip(k) },
		lower: func(dir string) error {
			for i := range files {
				p := name(dir, i)
				if i%inDir == 0 {
					if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
						return err
					}
				}
				if err := os.WriteFile(p, block, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
		steps: []step{
			{name: fmt.Sprintf("first byte of each of %d files", files), ops: files, run: func(e *env) error {
				for i := range files {
					if err := firstByte(name(e.point, i)); err != nil {
						return err
					}
				}
				return nil
			}},
			{name: "until all is durable and removed", ops: files, run: func(e *env) error {
				if err := command("sync", "-f", e.upper); err != nil || !e.kind.moves {
					return err
				}
				for left := true; left; time.Sleep(time.Millisecond) {
					left = false
					for i := 0; i < files && !left; i++ {
						_, err := os.Lstat(name(e.lower, i))
						left = err == nil
					}
				}
				return nil
			}},
		},
	}
}
