package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/seed"
)

// With --view=paths the process keeps this host's root, and the view is mounted over
// the smallest directories that its files lie in, in its mount namespace only. What the
// system consists of is this host's then, and must be what the process had.

// systemDirs are the names in the root directory that --view=paths takes from this host.
var systemDirs = []layers.Path{
	"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "usr",
}

func isSystem(p layers.Path) bool {
	first, _, _ := strings.Cut(string(p), "/")
	return slices.Contains(systemDirs, layers.Path(first))
}

// splitSystem returns the part of s that the source has, and the part that this host
// has to have.
func splitSystem(s seed.Seed) (theirs, ours seed.Seed) {
	for _, e := range s.Entries {
		if isSystem(e.Path) {
			ours.Entries = append(ours.Entries, e)
		} else {
			theirs.Entries = append(theirs.Entries, e)
		}
	}
	for _, d := range s.Dirs {
		if !isSystem(d) {
			theirs.Dirs = append(theirs.Dirs, d)
		}
	}
	return theirs, ours
}

// viewPaths returns the directories that the view is mounted over: those of the files
// or, where they are not here, the nearest above that are. Nothing is made for it, since
// everybody would see that.
func viewPaths(s seed.Seed, isDir func(dir string) bool) ([]string, error) {
	var dirs []string
	add := func(p layers.Path, dir layers.Path) error {
		for dir != layers.Root && !isDir("/"+string(dir)) {
			dir, _ = dir.Split()
		}
		if dir == layers.Root {
			first, _, _ := strings.Cut(string(p), "/")
			return fmt.Errorf("--view=paths: %q lies in /%s, which is no directory of this host, and / is not mounted over: mkdir /%s, or give --view=root", "/"+string(p), first, first)
		}
		dirs = append(dirs, "/"+string(dir))
		return nil
	}
	for _, e := range s.Entries {
		dir, _ := e.Path.Split()
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			dir = e.Path
		}
		if e.Path == layers.Root {
			continue // a working directory or root: this host's
		}
		if err := add(e.Path, dir); err != nil {
			return nil, err
		}
	}
	for _, d := range s.Dirs {
		if d == layers.Root {
			continue
		}
		if err := add(d, d); err != nil {
			return nil, err
		}
	}
	slices.Sort(dirs)
	var all []string
	for _, d := range slices.Compact(dirs) {
		if !slices.ContainsFunc(all, func(above string) bool { return isBelow(d, above) }) {
			all = append(all, d)
		}
	}
	return all, nil
}

// isOwnDir reports whether dir is a directory of this host, reached through no symlink.
func isOwnDir(dir string) bool {
	fd, err := openOwnDir(dir)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func openOwnDir(dir string) (int, error) {
	return unix.Openat2(unix.AT_FDCWD, path.Clean(dir), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
}

// planPaths says where the view is mounted, and compares what it leaves to this host
// with what the process had.
func (r *restoreCommand) planPaths() (err error) {
	r.plan.InPlace = true
	theirs, ours := splitSystem(r.checkpoint.Seed())
	if r.plan.Paths, err = viewPaths(theirs, isOwnDir); err != nil {
		return err
	}
	if r.verify == "off" {
		return nil
	}
	host, err := local.Open("/", local.Config{Recursive: true})
	if err != nil {
		return err
	}
	l, err := seed.New(context.Background(), seed.Config{Seed: ours, Inner: host})
	var bad *seed.MismatchError
	if errors.As(err, &bad) {
		host.Close()
		return fmt.Errorf("--view=paths takes the system from this host, and %d of its files are not what the process had, such as %q: %s: give --view=root, which takes them from the source",
			len(bad.Files), "/"+string(bad.Files[0].Path), bad.Files[0].What)
	}
	if err != nil {
		host.Close()
		return err
	}
	return l.Close()
}

// coverPaths mounts the view over its directories, and takes our other mounts out of
// this mount namespace.
func coverPaths(plan *restorePlan) error {
	for _, dir := range plan.Paths {
		if err := coverPath(plan.View, dir); err != nil {
			return err
		}
	}
	return dropOurMounts(runDir)
}

// coverPath mounts what the view has at dir over this host's.
func coverPath(view, dir string) error {
	own, err := openOwnDir(dir)
	if err != nil {
		return fmt.Errorf("%q, over which the source's is mounted: %w: make that directory here (nothing is written to it)", dir, err)
	}
	defer unix.Close(own)
	return mountInView(view, dir, func(at string) error {
		return unix.Mount(at, fmt.Sprintf("/proc/self/fd/%d", own), "", unix.MS_BIND, "")
	})
}
