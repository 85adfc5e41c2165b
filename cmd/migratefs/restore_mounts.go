package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
)

// Processes that had mounts of their own (unshare -m, a unit with PrivateTmp=, a root
// directory by pivot_root) get them from CRIU: it makes a mount namespace, binds the root
// directory that it is given, and mounts the rest as the images have it. So the helper keeps
// this host's root, and CRIU with it, and what they are given lies in the view, which shows
// the source from its root on: the root directory, and external mounts, by --map.

// newRootDir is where the root directory of such processes is bound, if it is not the
// view itself: CRIU wants a mount point. It is in the state directory.
const newRootDir = "newroot"

// splitMap takes a --map apart.
func splitMap(m string) (key, dir string, err error) {
	i := strings.LastIndex(m, "=")
	if i <= 0 || !filepath.IsAbs(m[i+1:]) {
		return "", "", usageErrorf("--map %q: write KEY=/path, KEY being the mount's key or mountpoint, and /path where it lies on the source", m)
	}
	return m[:i], filepath.Clean(m[i+1:]), nil
}

// mapTrees tells c where its trees lie.
func mapTrees(c *criu.Checkpoint, maps []string) error {
	for _, m := range maps {
		key, dir, err := splitMap(m)
		if err == nil {
			err = c.MapTree(key, dir)
		}
		if err != nil {
			return usageErrorf("--map %v", err)
		}
	}
	return nil
}

// explainContainer is said of a checkpoint that is not ours to restore.
func explainContainer(images string) error {
	return fmt.Errorf("checkpoint %q is of a container: mount its files with -o criu=, and restore it with what made it (runc restore, say)", images)
}

// planMounts refuses what does not go together, and maps the checkpoint's trees.
func (r *restoreCommand) planMounts() error {
	c := r.checkpoint
	switch {
	case c.ByRuntime:
		return explainContainer(r.images)
	case !c.MountNS && len(r.maps) > 0:
		return usageErrorf("--map is for processes that had mounts of their own: these had the host's")
	case !c.MountNS:
		return nil
	case r.view == "paths":
		return usageErrorf("--view=paths is for processes in the mounts of their host: these had mounts of their own, which CRIU makes anew")
	case len(r.binds) > 0:
		return usageErrorf("--bind is for processes in the mounts of their host: these had mounts of their own; for a directory of this host have it dumped with --external 'mnt[/dir]:KEY', and give -- --external 'mnt[KEY]:/dir'")
	}
	if err := mapTrees(c, r.maps); err != nil {
		return err
	}
	c.GiveTrees(r.extra)
	if slices.ContainsFunc(c.Trees, func(t criu.Tree) bool { return t.Auto }) {
		lines, err := criu.ConfigLines([]string{"--external", "mnt[]"}) // as for the dump, or CRIU refuses
		if err != nil {
			return err
		}
		r.plan.Options += lines
	}
	return nil
}

// placeMounts says where CRIU finds what it mounts.
func (r *restoreCommand) placeMounts() {
	c := r.checkpoint
	if !c.MountNS {
		return
	}
	r.plan.NewRoot = r.plan.View
	for _, t := range c.Trees {
		switch {
		case t.HostDir == "" || t.GivenHere():
		case t.Point == "/" && !t.External:
			if t.HostDir != "/" {
				r.plan.Root, r.plan.NewRoot = t.HostDir, filepath.Join(r.plan.State, newRootDir)
			}
		case t.Auto:
			r.plan.Paths = append(r.plan.Paths, t.HostDir)
		case t.External:
			r.plan.External = append(r.plan.External, fmt.Sprintf("mnt[%s]:%s", t.Key, filepath.Join(r.plan.View, t.HostDir)))
		}
	}
}

// furnishOwn gives CRIU what it mounts for processes with mounts of their own.
func furnishOwn(plan *restorePlan) error {
	if plan.Root != "" {
		if err := os.Mkdir(plan.NewRoot, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := mountInView(plan.View, plan.Root, func(from string) error {
			return unix.Mount(from, plan.NewRoot, "", unix.MS_BIND, "")
		}); err != nil {
			return err
		}
	}
	for _, dir := range plan.Paths {
		if err := coverPath(plan.View, dir); err != nil {
			return err
		}
	}
	return nil
}
