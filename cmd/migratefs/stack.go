package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/remember"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/layers/seed"
	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/overlay"
)

// stack is what a mount is made of, opened in an order that changes nothing on
// disk until everything that can be wrong has been looked at.
type stack struct {
	o     *options
	log   *slog.Logger
	point string // absolute, symlinks resolved
	dirs  []namedDir
	upper string // likewise; "" without one

	fs       *overlay.FS
	lowers   []overlay.Lower
	shown    []control.LayerSpec // of lowers, for status
	hosts    overlay.Hosts
	lock     *os.File // the upper, flocked, where this mount has it alone
	private  *os.File // UPPER/.migratefs/id, flocked
	work     *os.File // overlay mode
	workMade string   // the work directory, if this mount made it
	cache    *os.File // of cachedir=

	cacheMade string // likewise
	remote    bool
	left      *overlay.Departure // the mount was detached from its sources; nil: it was not

	images   stackImages
	fromView bool     // the source shows the view of a process that was restored there
	notes    []string // what whoever mounts is to know
}

// namedDir is a local layer: how it was named, and where it is.
type namedDir struct {
	what, text, real string
}

// openStack opens what is mounted on point, which findPoint has returned.
func openStack(ctx context.Context, o *options, point string, log *slog.Logger) (*stack, error) {
	st := &stack{o: o, log: log, point: point}
	for _, step := range []func(context.Context, string) error{
		st.findDirs, st.overlaps, st.lookAtCache, st.lockUpper, st.openLowers, st.openWork, st.openCache, st.assemble,
	} {
		if err := step(ctx, point); err != nil {
			st.abandon()
			return nil, err
		}
	}
	return st, nil
}

// findPoint resolves the mountpoint. A mount whose daemon died is taken away.
func findPoint(point string, log *slog.Logger) (string, error) {
	abs, err := filepath.Abs(point)
	if err != nil {
		return "", err
	}
	for isDead(abs) {
		m, ok := mountAt(abs)
		if !ok || m.fsType != fsType {
			return "", mountErrorf("mountpoint %q is a dead mount that is not ours: unmount it first", point)
		}
		log.Info("taking away the mount of a daemon that died", "mountpoint", abs)
		if err := unmount(abs, howToUnmount{lazy: true}); err != nil {
			return "", fmt.Errorf("dead mount on %q: %w", point, err)
		}
	}
	return realDir("mountpoint", point)
}

// isDead reports a FUSE mount without a daemon. Of attributes the kernel may
// answer from its cache; of the filesystem it always asks.
func isDead(path string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(path, &st), unix.ENOTCONN)
}

// realDir returns where a directory is, with an error that says what it was
// meant to be.
func realDir(what, path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", mountErrorf("%s %q: %w: create it, or name one that exists", what, path, bare(err))
	}
	fi, err := os.Stat(real)
	if err != nil {
		return "", mountErrorf("%s %q: %w", what, path, bare(err))
	}
	if !fi.IsDir() {
		return "", mountErrorf("%s %q is not a directory: name one", what, path)
	}
	return real, nil
}

// bare takes the operation and path off an error whose message names them.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (st *stack) findDirs(context.Context, string) error {
	for _, l := range st.o.lowers {
		if l.remote {
			continue
		}
		real, err := realDir("lower", l.text)
		if err != nil {
			return err
		}
		st.dirs = append(st.dirs, namedDir{"lower", l.text, real})
	}
	if st.o.upper == "" {
		return nil
	}
	real, err := realDir("upper", st.o.upper)
	if err != nil {
		return err
	}
	var vfs unix.Statfs_t
	if err := unix.Statfs(real, &vfs); err != nil {
		return mountErrorf("upper %q: %v", st.o.upper, err)
	}
	if vfs.Flags&unix.ST_RDONLY != 0 {
		return mountErrorf("upper %q is on a read-only filesystem: name a writable one, or leave upperdir out", st.o.upper)
	}
	if err := unix.Access(real, unix.W_OK|unix.X_OK); err != nil {
		return mountErrorf("upper %q cannot be written: %v", st.o.upper, err)
	}
	st.upper = real
	st.dirs = append(st.dirs, namedDir{"upper", st.o.upper, real})
	return nil
}

// overlaps refuses trees that contain each other: what is changed in one would
// change in the other, unseen.
func (st *stack) overlaps(context.Context, string) error {
	for i, a := range st.dirs {
		for _, b := range st.dirs[:i] {
			switch {
			case a.real == b.real:
				return mountErrorf("%s %q and %s %q are the same directory: every layer needs its own", a.what, a.text, b.what, b.text)
			case isBelow(a.real, b.real):
				return mountErrorf("%s %q is inside %s %q: layers must not contain each other", a.what, a.text, b.what, b.text)
			case isBelow(b.real, a.real):
				return mountErrorf("%s %q is inside %s %q: layers must not contain each other", b.what, b.text, a.what, a.text)
			}
		}
		if st.point == "" {
			continue // nothing is mounted
		}
		if a.real == st.point || isBelow(st.point, a.real) {
			return mountErrorf("mountpoint %q is inside %s %q: mount somewhere else", st.point, a.what, a.text)
		}
		if isBelow(a.real, st.point) {
			return mountErrorf("%s %q is inside the mountpoint %q, which would hide it: mount somewhere else", a.what, a.text, st.point)
		}
	}
	return nil
}

func isBelow(p, dir string) bool {
	return dir == "/" || strings.HasPrefix(p, dir+"/")
}

func (st *stack) openLowers(ctx context.Context, _ string) error {
	if left, err := st.departure(); err != nil {
		return err
	} else if left != nil && left.Settling {
		st.left, st.remote = left, true
		st.lowers = []overlay.Lower{{Layer: overlay.LeftBehind()}}
		return nil
	} else {
		st.left = left
	}
	if err := st.readCheckpoint(); err != nil {
		return err
	}
	for _, spec := range st.o.lowers {
		if !spec.remote {
			continue
		}
		if _, err := remote.ParseTarget(spec.text); err != nil {
			return &codeError{exitUsage, err}
		}
	}
	seeded := false
	var specs []lowerSpec // of st.lowers
	for _, spec := range st.o.lowers {
		first := st.seeds() && !seeded && spec.remote
		if first {
			spec = st.outside(spec)
		}
		l, changes, err := st.openLower(ctx, spec)
		if err != nil {
			return st.explainOutside(spec, err)
		}
		if first {
			seeded = true
			if l, spec, err = st.farCheckpoint(ctx, l, spec); err != nil {
				return err
			}
			st.fromView = st.isView(spec)
		}
		st.lowers = append(st.lowers, overlay.Lower{Layer: l, Changes: changes, OCI: spec.oci})
		specs = append(specs, spec)
	}
	if seeded {
		if err := st.seedLowers(ctx, specs); err != nil {
			return err
		}
	}
	if st.o.criu != "" && st.left != nil && !st.remote {
		st.lowers = append([]overlay.Lower{{Layer: overlay.LeftBehind()}}, st.lowers...)
	}
	if st.seeds() && !seeded {
		if err := st.farImages(ctx, nil, lowerSpec{}); err != nil {
			return err
		}
		l, err := st.seed(ctx, st.images.cp.Seed(), nil, lowerSpec{})
		if err != nil {
			return err
		}
		st.lowers = append([]overlay.Lower{{Layer: l, Seed: l.Names()}}, st.lowers...)
		st.shown = append([]control.LayerSpec{{Name: "criu=" + st.o.criu}}, st.shown...)
	}
	if st.o.viewAll {
		return st.openHost(ctx)
	}
	return nil
}

// openHost puts this host's / below all. Where the source shows a view, which has all of
// that already, or the processes had a root directory of their own, only what never comes from a source is seen of it: what was deleted in
// the view is deleted, also on the host where the files began.
func (st *stack) openHost(ctx context.Context) error {
	host, err := local.Open("/", local.Config{Recursive: true})
	if err != nil {
		return fmt.Errorf("this host's /: %w", err)
	}
	var l layers.Layer = host
	if st.fromView || st.images.cp != nil && !st.images.cp.RootIsHost() {
		ours := criu.HostDirs()
		if st.o.viewPaths {
			ours = systemDirs
		}
		entries, err := os.ReadDir("/")
		if err != nil {
			host.Close()
			return fmt.Errorf("this host's /: %w", err)
		}
		var theirs []layers.Path
		for _, e := range entries {
			if name := layers.Path(e.Name()); !slices.Contains(ours, name) {
				theirs = append(theirs, name)
			}
		}
		if l, err = seed.New(ctx, seed.Config{Inner: host, Hide: theirs, Logger: st.log}); err != nil {
			host.Close()
			return fmt.Errorf("this host's /: %w", err)
		}
	}
	st.lowers = append(st.lowers, overlay.Lower{Layer: l, Changes: true})
	st.shown = append(st.shown, control.LayerSpec{Name: "/", Layer: l})
	return nil
}

func (st *stack) openLower(ctx context.Context, spec lowerSpec) (l layers.Layer, changes bool, err error) {
	if !spec.remote {
		real, err := realDir("lower", spec.text)
		if err != nil {
			return nil, false, err
		}
		l, err := local.Open(real, local.Config{Private: st.o.mode == "overlay", Name: spec.text})
		if err != nil {
			return nil, false, err
		}
		root, err := control.IDOf(real)
		if err != nil {
			l.Close()
			return nil, false, err
		}
		st.shown = append(st.shown, control.LayerSpec{Name: real, Layer: l, Root: root})
		return l, false, nil
	}
	st.remote = true
	if st.left != nil {
		return overlay.LeftBehind(), false, nil // nothing is asked of that host again
	}
	cfg, err := st.o.remoteConfig(spec)
	if err != nil {
		return nil, false, err
	}
	cfg.Logger, cfg.Hides = st.log, st.point
	source, err := remote.New(ctx, cfg)
	if errors.Is(err, layers.ErrOffline) && st.upper != "" {
		// Names lie on the source only, and what is cached is believed only beside them.
		err = fmt.Errorf("%w; no mount begins without its source, what of it is whole here lies in %q", err, st.o.upper)
	}
	if err != nil {
		return nil, false, err
	}
	memory := remember.New(source, st.o.remembering())
	st.shown = append(st.shown, control.LayerSpec{Name: spec.text, Remote: source, Memory: memory})
	return memory, !st.o.immutable, nil
}

func (st *stack) assemble(ctx context.Context, _ string) (err error) {
	entry, attr, negative := st.o.timeouts()
	cfg := overlay.Config{
		Mode:          overlay.Overlay,
		Lowers:        st.lowers,
		Format:        whiteout.Trusted,
		Work:          st.work,
		Volatile:      st.o.volatile,
		Lenient:       st.o.lenient,
		KeepLower:     st.o.keepLower,
		TrashDays:     st.o.trashDays,
		NoAtime:       st.o.noAtime,
		NoPrefetch:    st.o.noPrefetch,
		NoPassthrough: st.o.noPass,
		NoRedirect:    st.o.noRedirect,
		NoFollow:      st.o.noFollow,
		Restored:      st.o.criu != "",
		Metacopy:      st.o.metacopy() && isRoot(),
		Fill:          st.o.fill(),
		Cache:         overlay.CacheConfig{Dir: st.cache, Limit: st.o.cacheSize, Percent: st.o.cachePercent},
		EntryTimeout:  entry,
		AttrTimeout:   attr,
		NegTimeout:    negative,
		IDs:           st.o.ids,
		AsCaller:      st.o.asCaller,
		Log:           st.log,
	}
	if st.o.mode == "migrate" {
		cfg.Mode, cfg.Hosts, cfg.Probe = overlay.Migrate, st.hosts, st.probe
	}
	if st.o.userXattr || !isRoot() || !initialUserNS() {
		cfg.Format = whiteout.User
	}
	if st.upper != "" {
		if cfg.Upper, err = local.Open(st.upper, local.Config{Name: st.o.upper}); err != nil {
			return err
		}
		st.shown = append([]control.LayerSpec{{Upper: true, Name: st.upper, Layer: cfg.Upper}}, st.shown...)
		if err := st.rootAsDumped(ctx); err != nil {
			cfg.Upper.Close()
			return err
		}
	}
	if st.fs, err = overlay.New(ctx, cfg); err != nil {
		if cfg.Upper != nil {
			cfg.Upper.Close()
		}
		return err
	}
	return nil
}

// flags are the mount's flags: a source of which we know nothing brings neither
// setuid programs nor devices, unless that is asked for.
func (st *stack) flags(given []string) []string {
	var f []string
	if st.remote {
		f = append(f, "nosuid", "nodev")
	}
	return append(f, given...)
}

// summary is the line that says what was mounted, and what that means for the
// lowers.
func (st *stack) summary() string {
	text := onLine(st.mounted())
	for _, n := range st.notes {
		text += "\nmigratefs: " + oneLine(n)
	}
	return text
}

func (st *stack) mounted() string {
	switch {
	case st.upper == "":
		return fmt.Sprintf("migratefs: %s is mounted read-only: nothing is ever modified", st.point)
	case st.o.mode == "migrate":
		return fmt.Sprintf("migratefs: %s is mounted, mode=migrate: what is modified moves to %s and is removed from the lower", st.point, st.o.upper)
	}
	if st.left != nil {
		return fmt.Sprintf("migratefs: %s is mounted, mode=overlay, detached since %s: changes go to %s, and no source is asked", st.point, st.left.When.Local().Format("2006-01-02 15:04:05"), st.o.upper)
	}
	return fmt.Sprintf("migratefs: %s is mounted, mode=overlay: changes go to %s, lowers are never modified", st.point, st.o.upper)
}

func (st *stack) close() error {
	err := st.fs.Close()
	st.closeImages()
	st.unlock()
	return err
}

func (st *stack) closeImages() {
	if st.images.own != nil {
		st.images.own.Close()
		st.images.own = nil
	}
}

func (st *stack) unlock() {
	for _, f := range []*os.File{st.work, st.private, st.lock, st.cache} {
		if f != nil {
			f.Close()
		}
	}
}

// abandon takes back what was opened, and made, for a mount that failed.
func (st *stack) abandon() {
	if st.fs != nil {
		_ = st.fs.Close()
	} else {
		for _, l := range st.lowers {
			l.Layer.Close()
		}
	}
	st.closeImages()
	st.dropCache()
	if st.workMade != "" {
		// Only what New makes can be in it; and while it is locked, it is ours.
		for _, name := range []string{"index", "links", "stubs", "objects", "temps"} {
			_ = os.RemoveAll(inside(st.work, name))
		}
		_ = os.Remove(st.workMade)
	}
	st.unlock()
}

// inside is how name in the open directory f is reached, whatever has become of its path.
func inside(f *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name) }
