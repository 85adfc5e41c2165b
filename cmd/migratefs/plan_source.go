package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/layers/seed"
)

// askSource compares what the images say with what the source has now. Without
// --from nobody is asked, and files are taken to be as they were.
func (p *imagesPlan) askSource(ctx context.Context, f *imagesFlags) error {
	if f.from == "" {
		return nil
	}
	target, err := remote.ParseTarget(sourceTarget(f.from))
	if err != nil {
		return usageErrorf("--from: %v", err)
	}
	if from := p.c.Origin; from.Root != "" && target.Path == "/" {
		target.Path = from.Root // as outside does it
	}
	l, err := f.dial(ctx, target)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := p.compare(ctx, l); err != nil {
		return err
	}
	p.askProcess(ctx, l)
	return nil
}

// dial connects to a directory on another host.
func (f *imagesFlags) dial(ctx context.Context, target remote.Target) (*remote.Layer, error) {
	conf := f.sshConfig
	if conf != "" {
		var err error
		if conf, err = filepath.Abs(conf); err != nil {
			return nil, err
		}
	}
	return remote.New(ctx, remote.Config{Target: target, SSHConfig: conf, ControlDir: controlDir()})
}

// askProcess looks whether the process still is where it was.
func (p *imagesPlan) askProcess(ctx context.Context, l layers.Layer) {
	for _, h := range p.Obstacles {
		if h.What == "two copies" {
			return
		}
	}
	exe := func(pid uint32) string {
		s, _ := l.Readlink(ctx, layers.Path(fmt.Sprintf("proc/%d/exe", pid)))
		return s
	}
	if isStillThere(p.c, exe) {
		p.add(criu.Obstacle{
			Level: criu.Caution, What: "two copies", PID: p.c.Tasks[0].PID,
			Why: "the process is still there on the source", Remedy: "end it there before this one runs, unless it is stopped",
		})
	}
}

// compare asks l about every file that would come from it.
func (p *imagesPlan) compare(ctx context.Context, l layers.Layer) error {
	var files []*criu.File
	var paths []layers.Path
	var s seed.Seed
	for i := range p.c.Files {
		f := &p.c.Files[i]
		if p.of[f].From != fromSource || f.HostPath == "" {
			continue
		}
		path := layers.Path(strings.TrimPrefix(f.HostPath, "/"))
		files, paths = append(files, f), append(paths, path)
		s.Entries = append(s.Entries, f.Entry(path))
	}
	attrs, errs, err := statAll(ctx, l, paths)
	if err != nil {
		return err
	}
	for i, f := range files {
		pf := p.of[f]
		switch a := &attrs[i]; {
		case errors.Is(errs[i], unix.ENOENT), errors.Is(errs[i], unix.ENOTDIR):
			pf.From = fromNowhere
		case errs[i] != nil:
			return fmt.Errorf("%q on the source: %w", f.HostPath, errs[i])
		default:
			pf.Size, pf.mtime, pf.known = a.Size, a.Mtime.Sec, a.Has(layers.KnownTimes)
			pf.Type = modeText(a.Mode)
		}
	}
	return p.mismatches(ctx, l, s)
}

// mismatches are what a restore would be refused for: the seed layer is who looks.
func (p *imagesPlan) mismatches(ctx context.Context, l layers.Layer, s seed.Seed) error {
	_, err := seed.New(ctx, seed.Config{Seed: s, Inner: l})
	var bad *seed.MismatchError
	if !errors.As(err, &bad) {
		return err
	}
	for _, m := range bad.Files {
		p.add(criu.Obstacle{
			Level: criu.Blocker, What: "file", Path: "/" + string(m.Path),
			Why: "on the source it is not as it was when the checkpoint was made: " + m.What, Remedy: "bring it back, or dump again",
		})
	}
	return nil
}

func statAll(ctx context.Context, l layers.Layer, paths []layers.Path) ([]layers.Attr, []error, error) {
	if b, ok := l.(layers.BulkStater); ok {
		return b.StatMany(ctx, paths)
	}
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	for i, path := range paths {
		attrs[i], errs[i] = l.Stat(ctx, path)
	}
	return attrs, errs, nil
}

// findTwins looks for files that this host has as the source has them: of one
// path, size, build-id and mtime. Those need not be fetched.
func (p *imagesPlan) findTwins() {
	for i := range p.c.Files {
		f := &p.c.Files[i]
		pf := p.of[f]
		if pf.From != fromSource || !pf.known || f.BuildID == nil || p.c.MountNS {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(f.HostPath, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != pf.Size || st.Mtim.Sec != pf.mtime {
			continue
		}
		if id := localBuildID(f.HostPath); len(id) >= len(f.BuildID) && string(id[:len(f.BuildID)]) == string(f.BuildID) {
			pf.From = fromHere
		}
	}
}

// localBuildID reads the build-id of a program of this host, or returns nil.
func localBuildID(path string) []byte {
	const gnuBuildID = 3
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_NOTE || prog.Filesz > 1<<20 {
			continue
		}
		b, err := io.ReadAll(prog.Open())
		if err != nil {
			return nil
		}
		up := func(n uint32) int { return int(min(n, 1<<20)+3) &^ 3 }
		for len(b) >= 12 {
			name, desc, typ := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:]), f.ByteOrder.Uint32(b[8:])
			from, end := 12+up(name), 12+up(name)+up(desc)
			if end > len(b) {
				break
			}
			if typ == gnuBuildID && strings.HasPrefix(string(b[12:from]), "GNU\x00") {
				return b[from : from+int(desc)]
			}
			b = b[end:]
		}
	}
	return nil
}
