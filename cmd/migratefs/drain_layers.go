package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/migratefs/migratefs/layers"
)

// Beside the note of a mount lies another, of how it was made: which layers it has
// the kernel does not tell.

// madeOf is that note.
type madeOf struct {
	Options []string `json:"options"`
	Dir     string   `json:"dir"` // what relative paths in them are relative to
}

// noteOptions writes it. What it returns takes it away. It fails in silence: who
// needs it says so.
func noteOptions(point string, opts []string) (end func()) {
	m, ok := mountAt(point)
	name := optionsFile(m)
	dir, err := os.Getwd()
	if !ok || name == "" || err != nil {
		return func() {}
	}
	text, err := json.Marshal(madeOf{Options: opts, Dir: dir})
	if err != nil {
		return func() {}
	}
	// The number is this mount's now, and the next one's before this daemon ends.
	_ = os.Remove(name)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return func() {}
	}
	_, _ = f.Write(text)
	return func() {
		// As long as it is open no other file has its inode number.
		defer f.Close()
		own, err := f.Stat()
		if now, nerr := os.Lstat(name); err == nil && nerr == nil && os.SameFile(own, now) {
			_ = os.Remove(name)
		}
	}
}

func optionsFile(m mountInfo) string {
	if name := registryFile(m); name != "" {
		return name + ".options"
	}
	return ""
}

// optionsOf returns how the mount m was made.
func optionsOf(m mountInfo) (*options, error) {
	o, _, err := madeOptions(m)
	return o, err
}

// madeOptions is optionsOf with the note that says it.
func madeOptions(m mountInfo) (*options, *madeOf, error) {
	text, err := os.ReadFile(optionsFile(m))
	var made madeOf
	if err == nil {
		err = json.Unmarshal(text, &made)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the layers of the mount on %q are not known here (%v): give -o lowerdir=...,upperdir=... as it has them", m.point, bare(err))
	}
	o, err := parseOptions(made.Options)
	if err != nil {
		return nil, &made, err
	}
	from := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(made.Dir, *path)
		}
	}
	for i := range o.lowers {
		if !o.lowers[i].remote {
			from(&o.lowers[i].text)
		}
	}
	from(&o.upper)
	from(&o.work)
	from(&o.cacheDir)
	from(&o.sshConfig)
	return o, &made, nil
}

// layers finds the layers, and the path in them, that are meant: by -o, or by what
// is mounted at arg or above it.
func (f *drainFlags) layers(arg string) (*options, layers.Path, error) {
	if len(f.options) > 0 {
		o, err := parseOptions(f.options)
		if err != nil {
			return nil, "", err
		}
		sub := layers.Path(strings.Trim(filepath.Clean("/"+arg), "/"))
		return o, sub, nil
	}
	m, sub, err := mountOver(arg)
	if err != nil {
		return nil, "", err
	}
	o, err := optionsOf(m)
	return o, sub, err
}

// mountOver returns the mount of ours that path lies in, and where in it.
func mountOver(path string) (m mountInfo, sub layers.Path, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return m, "", err
	}
	// The last name may be a symlink that is meant itself.
	if _, on := mountAt(abs); !on {
		dir, name := filepath.Split(abs)
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return m, "", fmt.Errorf("%q: %w", path, bare(err))
		}
		abs = filepath.Join(real, name)
	}
	all, err := mounts()
	if err != nil {
		return m, "", err
	}
	found := false
	for _, x := range all {
		if x.point != abs && !isBelow(abs, x.point) || found && len(x.point) < len(m.point) {
			continue
		}
		m, found = x, true
	}
	if !found || m.fsType != fsType {
		if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
			return mountOver(real)
		}
		return m, "", fmt.Errorf("%q is not in a mount of migratefs: name one, or give the layers with -o", path)
	}
	rel := strings.Trim(strings.TrimPrefix(abs, m.point), "/")
	if _, err := os.Lstat(abs); errors.Is(err, os.ErrNotExist) {
		return m, "", fmt.Errorf("%q: %w", path, bare(err))
	}
	return m, layers.Path(rel), nil
}
