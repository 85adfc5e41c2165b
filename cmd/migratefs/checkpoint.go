package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/layers/seed"
	"github.com/migratefs/migratefs/overlay"
)

// stackImages is what a mount knows of its checkpoint.
type stackImages struct {
	cp  *criu.Checkpoint // nil: none, or not read yet
	far *seed.Images     // where they are, if on another host
	own layers.Layer     // the connection for that; nil: a lower's

	seeds []*seed.Layer // of cp, a part in each lower on another host
}

// isRemote reports whether a directory is named as one on another host.
func isRemote(dir string) bool {
	i := strings.IndexByte(dir, ':')
	return strings.HasPrefix(dir, "ssh://") || i > 0 && !strings.Contains(dir[:i], "/")
}

// seeds reports whether a checkpoint says what is served. After detach nothing does.
func (st *stack) seeds() bool { return st.o.criu != "" && st.left == nil }

// readCheckpoint reads the images of this host. Those of another are read over the
// connection of its lower, when there is one: see farImages.
func (st *stack) readCheckpoint() (err error) {
	if st.seeds() && !isRemote(st.o.criu) {
		if st.images.cp, err = criu.Load(st.o.criu); err == nil {
			err = st.placeTrees()
		}
	}
	return err
}

// placeTrees says where what the checkpoint's processes had mounted lies. In a view
// that is counted from the source's root.
func (st *stack) placeTrees() error {
	cp := st.images.cp
	if err := mapTrees(cp, st.o.maps); err != nil || !st.o.viewAll {
		return err
	}
	if cp.ByRuntime {
		return explainContainer(st.o.criu)
	}
	for _, o := range cp.Obstacles {
		if cp.Trees[0].HostDir == "" && o.Path == cp.Trees[0].Point {
			return fmt.Errorf("checkpoint %q: %s", st.o.criu, o.String())
		}
	}
	return nil
}

// farImages reads images on another host: through l, the lower that spec names, if they
// lie in it, else over a connection of their own.
func (st *stack) farImages(ctx context.Context, l layers.Layer, spec lowerSpec) error {
	if st.images.cp != nil {
		return nil
	}
	target, err := remote.ParseTarget(st.o.criu)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	if dir, ok := inLower(target, spec.text); ok && l != nil {
		st.images.far, err = seed.OpenImages(ctx, l, dir)
	}
	if st.images.far == nil && (err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		// Another host, or a symlink in the path, which only a root may be reached through.
		if st.images.own, _, err = st.openLower(ctx, lowerSpec{text: st.o.criu, remote: true}); err == nil {
			st.images.far, err = seed.OpenImages(ctx, st.images.own, layers.Root)
		}
	}
	if err == nil {
		st.images.cp, err = criu.LoadFS(st.images.far.FS(ctx), st.o.criu)
	}
	if err != nil {
		return fmt.Errorf("checkpoint %q: %w", st.o.criu, err)
	}
	if err := st.placeTrees(); err != nil {
		return err
	}
	if a := st.images.cp.Arch; a != runtime.GOARCH {
		return &criu.ArchError{Dir: st.o.criu, Arch: a, Host: runtime.GOARCH}
	}
	return nil
}

// farCheckpoint reads images on another host, if that is where they are, and returns the
// lower that has the files: l, or what outside makes of it once they are read.
func (st *stack) farCheckpoint(ctx context.Context, l layers.Layer, spec lowerSpec) (layers.Layer, lowerSpec, error) {
	if err := st.farImages(ctx, l, spec); err != nil {
		l.Close()
		return nil, spec, err
	}
	other := st.outside(spec)
	if other.text == spec.text {
		return l, spec, nil
	}
	if st.images.own == nil {
		st.images.own = l // they are read through it
	} else {
		l.Close()
	}
	st.shown = slices.DeleteFunc(st.shown, func(s control.LayerSpec) bool { return s.Name == spec.text })
	l, _, err := st.openLower(ctx, other)
	return l, other, st.explainOutside(other, err)
}

// outside is spec as it has to be for a process that ran in a view: its files are below
// that, and what the host has in its own root is another thing. Who names another
// directory than the root means that.
func (st *stack) outside(spec lowerSpec) lowerSpec {
	if st.images.cp == nil || st.images.cp.Origin.Root == "" {
		return spec
	}
	if target, err := remote.ParseTarget(spec.text); err == nil && target.Path == "/" {
		target.Path = st.images.cp.Origin.Root
		spec.text = target.String()
	}
	return spec
}

// isView reports whether spec is the view that the process of the checkpoint ran in.
func (st *stack) isView(spec lowerSpec) bool {
	if st.images.cp == nil || st.images.cp.Origin.Root == "" {
		return false
	}
	target, err := remote.ParseTarget(spec.text)
	return err == nil && target.Path == st.images.cp.Origin.Root
}

// explainOutside says more of an error when that was opened.
func (st *stack) explainOutside(spec lowerSpec, err error) error {
	if err == nil || !st.isView(spec) {
		return err
	}
	return fmt.Errorf("%w; there host %q had the files of the process mounted when it was dumped, and has to have them as long as this host has not got them all", err, st.images.cp.Origin.Host)
}

// inLower returns the path that a directory has in the lower of that name.
func inLower(dir remote.Target, lower string) (layers.Path, bool) {
	root, err := remote.ParseTarget(lower)
	if err != nil || root.User != dir.User || root.Host != dir.Host || root.Port != dir.Port || !isBelow(dir.Path, root.Path) {
		return "", false
	}
	p := layers.Path(strings.TrimPrefix(strings.TrimPrefix(dir.Path, root.Path), "/"))
	return p, p.Valid()
}

// seedLowers puts the checkpoint's seed over the lowers, which specs describe. Each file
// is compared in the highest that has it.
func (st *stack) seedLowers(ctx context.Context, specs []lowerSpec) error {
	parts := make([]seed.Seed, len(specs))
	whole := st.images.cp.Seed()
	if st.o.viewPaths {
		whole, _ = splitSystem(whole)
	}
	if len(specs) == 1 {
		parts[0] = whole
	} else if err := st.deal(ctx, specs, whole, parts); err != nil {
		return err
	}
	for i, spec := range specs {
		at := &st.lowers[i]
		if !spec.remote {
			if err := st.compareHere(ctx, at.Layer, parts[i]); err != nil {
				return err
			}
			continue
		}
		l, err := st.seed(ctx, parts[i], at.Layer, spec)
		if err != nil {
			return err
		}
		at.Layer, at.Seed = l, l.Names()
		if k := slices.IndexFunc(st.shown, func(s control.LayerSpec) bool { return s.Name == spec.text }); k >= 0 {
			st.shown[k].Twins = func() (files int, bytes int64) {
				twins, bytes := l.Twins()
				return len(twins), bytes
			}
		}
	}
	return nil
}

// deal gives each lower those names of the seed that no higher one has. What none has
// is missed in the highest on another host.
func (st *stack) deal(ctx context.Context, specs []lowerSpec, whole seed.Seed, parts []seed.Seed) error {
	entries, dirs := whole.Entries, whole.Dirs
	for i := range specs {
		paths := slices.Clone(dirs)
		for _, e := range entries {
			paths = append(paths, e.Path)
		}
		_, errs, err := statAll(ctx, st.lowers[i].Layer, paths)
		if err != nil {
			return fmt.Errorf("lower %q: %w: of several lowers each has to answer, or nobody knows which has the files of the checkpoint", specs[i].text, err)
		}
		var restDirs []layers.Path
		var rest []seed.Entry
		for k, err := range errs {
			missing := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
			switch {
			case err != nil && !missing:
				return fmt.Errorf("lower %q: %q: %w", specs[i].text, "/"+string(paths[k]), err)
			case k < len(dirs) && missing:
				restDirs = append(restDirs, dirs[k])
			case k < len(dirs):
				parts[i].Dirs = append(parts[i].Dirs, dirs[k])
			case missing:
				rest = append(rest, entries[k-len(dirs)])
			default:
				parts[i].Entries = append(parts[i].Entries, entries[k-len(dirs)])
			}
		}
		entries, dirs = rest, restDirs
	}
	first := slices.IndexFunc(specs, func(s lowerSpec) bool { return s.remote })
	parts[first].Entries = append(parts[first].Entries, entries...)
	parts[first].Dirs = append(parts[first].Dirs, dirs...)
	return nil
}

// borrowed is a layer that somebody else closes.
type borrowed struct{ layers.Layer }

func (borrowed) Close() error { return nil }

// compareHere compares what a lower of this host has with the checkpoint.
func (st *stack) compareHere(ctx context.Context, l layers.Layer, part seed.Seed) error {
	if len(part.Entries) == 0 || st.o.names != seed.Tree {
		return nil
	}
	as, err := seed.New(ctx, seed.Config{Seed: part, Inner: borrowed{l}, Verify: st.o.verify, Logger: st.log})
	if err == nil {
		st.noteChanges(as)
		err = as.Close()
	}
	return err
}

// seed puts a part of a checkpoint's seed over the layer that has its files.
func (st *stack) seed(ctx context.Context, part seed.Seed, inner layers.Layer, spec lowerSpec) (*seed.Layer, error) {
	cp := st.images.cp
	cfg := seed.Config{Seed: part, Inner: inner, Names: st.o.names, Verify: st.o.verify, Logger: st.log}
	if st.o.viewAll {
		cfg.Hide = criu.HostDirs()
	}
	if st.o.viewPaths {
		cfg.Hide = systemDirs
	}
	if !st.o.noLocal && isRoot() {
		cfg.Local = "/"
	}
	if st.images.far != nil && (st.images.own == nil || sameHost(st.o.criu, spec.text)) {
		cfg.Since = st.images.far.Made() // by the same clock
	}
	runs := make(chan string, 1)
	go func() { runs <- stillRuns(ctx, cp, inner, spec) }()
	l, err := seed.New(ctx, cfg)
	note := <-runs // by inner, which whoever called closes next
	if err != nil {
		return nil, err
	}
	if note != "" && st.o.verify != seed.Off {
		st.notes = append(st.notes, note)
	}
	st.noteChanges(l)
	if twins, bytes := l.Twins(); len(twins) > 0 {
		st.log.Info("of the checkpoint's programs and libraries this host has the same", "files", len(twins), "bytes", bytes)
	}
	st.images.seeds = append(st.images.seeds, l)
	return l, nil
}

// rootAsDumped gives an upper that nothing was done with yet the owner and the mode of
// the checkpoint's root directory: of a merged directory the highest layer's are shown,
// and CRIU restores nobody whose root directory has another mode than it had (the one
// of most container images, and of Fedora, is 0555).
func (st *stack) rootAsDumped(ctx context.Context) error {
	if !st.seeds() || st.o.names != seed.Tree || !isRoot() || !st.untouched() {
		return nil
	}
	for _, l := range st.lowers {
		attr, err := l.Layer.Stat(ctx, layers.Root)
		if err != nil {
			return err
		}
		if !attr.Has(layers.KnownOwner) {
			continue // of images without their source
		}
		err = os.Chown(st.upper, int(attr.UID), int(attr.GID))
		if err == nil {
			err = unix.Chmod(st.upper, attr.Mode&0o7777)
		}
		if err != nil {
			return mountErrorf("upper %q cannot get the owner and the mode of the source's root directory: %v: name another", st.o.upper, bare(err))
		}
		return nil
	}
	return nil
}

// untouched reports whether the upper and its work directory are empty: no mount has
// used them.
func (st *stack) untouched() bool {
	for _, dir := range []string{st.upper, st.work.Name()} {
		entries, err := os.ReadDir(dir)
		if err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != overlay.Reserved }) {
			return false
		}
	}
	return true
}

func sameHost(a, b string) bool {
	x, err := remote.ParseTarget(a)
	y, err2 := remote.ParseTarget(b)
	return err == nil && err2 == nil && x.Host == y.Host && x.Port == y.Port
}

// noteChanges says which files are not what they were, where that is no reason to
// refuse.
func (st *stack) noteChanges(l *seed.Layer) {
	for _, c := range l.Changed() {
		st.notes = append(st.notes, fmt.Sprintf("%q changed on the source since the dump, and is served as it is now: %s", "/"+string(c.Path), c.What))
	}
	if st.images.far != nil || st.o.verify == seed.Off {
		return
	}
	// The images may have been copied without their times, and by another clock: so
	// this refuses nothing.
	fi, err := os.Stat(filepath.Join(st.o.criu, "inventory.img"))
	if err != nil {
		return
	}
	t := fi.ModTime()
	if ps := l.ModifiedSince(layers.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}); len(ps) > 0 {
		st.notes = append(st.notes, fmt.Sprintf("%d files were modified on the source after the images were written, if the clocks agree: %s", len(ps), quotedPaths(ps)))
	}
}

// quotedPaths names some of ps.
func quotedPaths(ps []layers.Path) string {
	const most = 10
	var b strings.Builder
	for i, p := range ps {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(ps)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", "/"+string(p))
	}
	return b.String()
}

// stillRuns returns a warning if the process that was dumped runs on the source
// (--leave-running): its pid there is of the same program. What cannot be seen is "".
func stillRuns(ctx context.Context, cp *criu.Checkpoint, inner layers.Layer, spec lowerSpec) string {
	target, err := remote.ParseTarget(spec.text)
	if err != nil || inner == nil || target.Path != "/" {
		return ""
	}
	exe := ""
	if !isStillThere(cp, func(pid uint32) string {
		exe, _ = inner.Readlink(ctx, layers.Path(fmt.Sprintf("proc/%d/exe", pid)))
		return exe
	}) || exe == "" {
		return ""
	}
	return fmt.Sprintf("process %d (%q) still runs on the source, or another of the same program has its pid: two copies of one process write to what both take for theirs; end one of them", cp.Tasks[0].PID, exe)
}

// imagesMount shows images of another host to who restores them.
type imagesMount struct {
	point string
	ended chan struct{}
}

// showImages mounts the images, read-only, where images_at= says.
func (m *mountCommand) showImages(st *stack) (*imagesMount, error) {
	far := st.images.far
	if m.opts.imagesAt == "" || far == nil {
		st.images.far = nil // and what it has read is free
		return nil, nil
	}
	point, err := realDir("images_at", m.opts.imagesAt)
	if err != nil {
		return nil, err
	}
	ofs, err := overlay.New(context.Background(), overlay.Config{Lowers: []overlay.Lower{{Layer: far}}, Log: st.log})
	if err != nil {
		return nil, err
	}
	server, err := m.mount(&stack{o: st.o, log: st.log, fs: ofs, point: point, remote: true})
	if err != nil {
		_ = ofs.Close()
		return nil, fmt.Errorf("mount the images on %q: %w", point, err)
	}
	i := &imagesMount{point: point, ended: make(chan struct{})}
	go i.serve(server, ofs)
	if err := server.WaitMount(); err != nil {
		i.end()
		return nil, fmt.Errorf("mount the images on %q: %w", point, err)
	}
	return i, nil
}

func (i *imagesMount) serve(server *fuse.Server, ofs *overlay.FS) {
	server.Serve()
	_ = ofs.Close()
	close(i.ended)
}

// end unmounts the images, unless who restored has done so, and waits for the last of
// those who have them open.
func (i *imagesMount) end() {
	if i == nil {
		return
	}
	select {
	case <-i.ended:
		return
	default:
	}
	_ = unmount(i.point, howToUnmount{lazy: true})
	<-i.ended
}
