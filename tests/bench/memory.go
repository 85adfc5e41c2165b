package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// memoryUse is what a daemon holds, in bytes: before a walk, after it, and when
// the kernel has forgotten all names and inodes again.
type memoryUse struct {
	before, after, dropped, later int64
	files                         int
}

// memory walks a million files on each mount and lets the kernel forget them.
func (b *bed) memory() (_ map[*kind]memoryUse, err error) {
	files, dirs := 1000000, 1000
	if b.cfg.quick {
		files, dirs = 50000, 50
	}
	l := &load{readOnly: true, steps: []step{{name: "walk", run: func(e *env) error { return walk(e.point) }}}}
	d, err := b.disk(l)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := d.close(); err == nil {
			err = cerr
		}
	}()
	shared := filepath.Join(d.dir, "shared")
	if err := make1(shared, func(dir string) error { return emptyTree(dir, files, dirs) }); err != nil {
		return nil, err
	}
	use := map[*kind]memoryUse{}
	for _, k := range b.kinds {
		switch k.name {
		case "ours-overlay", "ours-migrate", "go-fuse":
		default:
			continue // a walk of a million files takes its time
		}
		err := b.once(l, k, d, func(_ int, m *mounted, run func() error) error {
			u := memoryUse{files: files, before: m.rss()}
			if err := run(); err != nil {
				return err
			}
			u.after = m.rss()
			if err := dropCaches("2"); err != nil {
				return err
			}
			time.Sleep(3 * time.Second)
			u.dropped = m.rss()
			time.Sleep(7 * time.Second)
			u.later = m.rss()
			use[k] = u
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return use, nil
}

func emptyTree(dir string, files, dirs int) error {
	for i := range dirs {
		if err := os.Mkdir(fmt.Sprintf("%s/d%04d", dir, i), 0o755); err != nil {
			return err
		}
	}
	for i := range files {
		f, err := os.Create(dir + "/" + treeName(i, dirs))
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// rss is the resident memory of the daemon (proc_pid_statm(5)).
func (m *mounted) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", m.cmd.Process.Pid))
	fields := bytes.Fields(b)
	if err != nil || len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return n * int64(os.Getpagesize())
}
