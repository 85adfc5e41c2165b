package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/layers/seed"
)

// imagesFlags are the flags of migratefs plan that are about checkpoints.
type imagesFlags struct {
	from      string
	sshConfig string
	criuPath  string
	binds     []string
	maps      []string
	noLocal   bool
	all       bool
}

// imageFlagNames are those flags, which make no sense for two directories.
var imageFlagNames = []string{"from", "ssh-config", "criu", "bind", "map", "no-local", "all"}

func (f *imagesFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.from, "from", "", "IMAGES: ask this host, which the process comes from: [user@]host, ssh://[user@]host[:port]")
	fl.StringVar(&f.sshConfig, "ssh-config", "", "IMAGES: configuration file for ssh")
	fl.StringVar(&f.criuPath, "criu", "", "IMAGES: the criu that would be used (default: the one in PATH)")
	fl.StringArrayVar(&f.binds, "bind", nil, "IMAGES: this directory would be taken from this host, as /run is (repeatable)")
	fl.StringArrayVar(&f.maps, "map", nil, "IMAGES: KEY=/path: where the mount of this key or mountpoint lies on the source (repeatable)")
	fl.BoolVar(&f.noLocal, "no-local", false, "IMAGES: do not look for identical copies on this host")
	fl.BoolVar(&f.all, "all", false, "IMAGES: name every file, directories too")
}

// Where a file comes from.
const (
	fromSource  = "source"  // fetched
	fromHere    = "here"    // this host has an identical copy
	fromHost    = "host"    // this host's own, whatever that is: /dev, /run and the like
	fromImages  = "images"  // in the images
	fromNothing = "made"    // CRIU makes it anew
	fromNowhere = "nowhere" // nobody has it
)

// text is bytes that need not be UTF-8, quoted for JSON.
type text string

// MarshalText implements encoding.TextMarshaler.
func (t text) MarshalText() ([]byte, error) {
	q := fmt.Sprintf("%q", string(t))
	return []byte(q[1 : len(q)-1]), nil
}

// imagesPlan is what `plan IMAGES` says. Its JSON is documented in migratefs(8).
type imagesPlan struct {
	Images    text            `json:"images"`
	From      text            `json:"from,omitempty"`
	Arch      string          `json:"arch"`
	Container *plannedBox     `json:"container,omitempty"`
	Processes []plannedTask   `json:"processes"`
	Mounts    []plannedMount  `json:"mounts,omitempty"`
	Files     []plannedFile   `json:"files"`
	First     plannedBytes    `json:"before_first_instruction"`
	All       plannedBytes    `json:"in_all"`
	Lazy      int64           `json:"lazy_memory"` // bytes of images that come later with restore --lazy-pages
	Obstacles []plannedHurdle `json:"obstacles"`
	Warnings  []text          `json:"warnings,omitempty"`
	Options   []string        `json:"criu_options,omitempty"` // that migratefs gives by itself
	Works     bool            `json:"works"`

	c  *criu.Checkpoint
	of map[*criu.File]*plannedFile
}

type plannedBox struct {
	Engine string `json:"engine,omitempty"`
	ID     text   `json:"id,omitempty"`
	Name   text   `json:"name,omitempty"`
	Image  text   `json:"image,omitempty"`
}

type plannedTask struct {
	PID     uint32 `json:"pid"`
	PPID    uint32 `json:"ppid"`
	Threads int    `json:"threads"`
	Command text   `json:"command"`
}

type plannedMount struct {
	Key   text `json:"key"`
	Point text `json:"mountpoint"`
	Dir   text `json:"source_directory,omitempty"`
	Files int  `json:"files"`
}

type plannedFile struct {
	Path     text   `json:"path"`
	HostPath text   `json:"host_path,omitempty"` // on the source, if it is another
	Type     string `json:"type"`
	From     string `json:"from"`
	Size     int64  `json:"size"`  // -1: not known
	Bytes    int64  `json:"bytes"` // to fetch in all
	BuildID  string `json:"build_id,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
	Refs     []text `json:"references"`

	mtime int64 // on the source
	known bool  // mtime is
}

// plannedBytes are bytes by where they come from.
type plannedBytes struct {
	Source int64 `json:"source"`
	Here   int64 `json:"here"`
	Images int64 `json:"images"`
}

type plannedHurdle struct {
	Level  criu.Level `json:"level"`
	What   string     `json:"what"`
	Path   text       `json:"path,omitempty"`
	PID    uint32     `json:"pid,omitempty"`
	Why    text       `json:"why"`
	Remedy text       `json:"remedy,omitempty"`
}

// looksLikeImages reports whether path is a checkpoint rather than a tree to move.
func looksLikeImages(path string) bool {
	return isRemote(path) || criu.IsImages(path) || criu.IsArchive(path)
}

// run plans the restore of the checkpoint at images. Args are CRIU's.
func (f *imagesFlags) run(ctx context.Context, out io.Writer, images string, args []string, asJSON bool) error {
	if err := f.check(args); err != nil {
		return err
	}
	c, end, err := f.load(ctx, images)
	if err != nil {
		return err
	}
	defer end()
	if err := mapTrees(c, f.maps); err != nil {
		return err
	}
	c.GiveTrees(args)
	p := newImagesPlan(c, images, f.from)
	for _, o := range c.InTheWay(f.binds, args) {
		p.add(o)
	}
	p.checkPages()
	if _, err := criu.Find(f.criuPath); err != nil {
		p.add(criu.Obstacle{Level: criu.Blocker, What: "program", Path: "criu", Why: err.Error()})
	}
	if err := p.askSource(ctx, f); err != nil {
		return err
	}
	if !f.noLocal {
		p.findTwins()
	}
	p.count()
	p.Works = !slices.ContainsFunc(p.Obstacles, func(h plannedHurdle) bool { return h.Level == criu.Blocker })
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(p)
	} else {
		err = p.write(out, f.all)
	}
	if err == nil && !p.Works {
		err = &codeError{exitFound, fmt.Errorf("checkpoint %q cannot be restored here as it is: see above", images)}
	}
	return err
}

// check finds what is wrong with the flags, and with args, CRIU's.
func (f *imagesFlags) check(args []string) error {
	if _, err := criu.ConfigLines(args); err != nil {
		return usageErrorf("%v", err)
	}
	for i, b := range f.binds {
		if !filepath.IsAbs(b) || filepath.Clean(b) == "/" {
			return usageErrorf("--bind %q: give the absolute path of a directory below /", b)
		}
		f.binds[i] = filepath.Clean(b)
	}
	for _, m := range f.maps {
		if _, _, err := splitMap(m); err != nil {
			return err
		}
	}
	return nil
}

// load reads the images, those on another host over a connection that end closes.
// That host is then the source, if none was named.
func (f *imagesFlags) load(ctx context.Context, images string) (c *criu.Checkpoint, end func(), err error) {
	if !isRemote(images) {
		c, err = criu.Load(images)
		return c, func() {}, err
	}
	target, err := remote.ParseTarget(images)
	if err != nil {
		return nil, nil, usageErrorf("%v", err)
	}
	l, err := f.dial(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	end = func() { l.Close() }
	far, err := seed.OpenImages(ctx, l, layers.Root)
	if err == nil {
		c, err = criu.LoadFS(far.FS(ctx), images)
	}
	if err == nil && c.Arch != runtime.GOARCH {
		err = &criu.ArchError{Dir: images, Arch: c.Arch, Host: runtime.GOARCH}
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	if target.Path = "/"; f.from == "" {
		f.from = target.String()
	}
	return c, end, nil
}

func newImagesPlan(c *criu.Checkpoint, images, from string) *imagesPlan {
	p := &imagesPlan{
		Images: text(images), From: text(from), Arch: c.Arch, Options: c.Options(), Obstacles: []plannedHurdle{},
		c: c, of: make(map[*criu.File]*plannedFile),
	}
	if b := c.Container; b != nil {
		p.Container = &plannedBox{Engine: b.Engine, ID: text(b.ID), Name: text(b.Name), Image: text(b.Image)}
	}
	for _, t := range c.Tasks {
		p.Processes = append(p.Processes, plannedTask{t.PID, t.PPID, max(1, len(t.Threads)), text(t.Comm)})
	}
	if c.MountNS {
		for _, t := range c.Trees {
			p.Mounts = append(p.Mounts, plannedMount{text(t.Key), text(t.Point), text(t.HostDir), t.Files})
		}
	}
	if c.ByRuntime {
		p.add(criu.Obstacle{
			Level: criu.Caution, What: "container", Why: "a container's runtime made the checkpoint",
			Remedy: "have it restore it, with migratefs as its root directory (docs/containers.md)",
		})
	}
	for _, w := range c.Warnings {
		p.Warnings = append(p.Warnings, text(w))
	}
	p.Files = make([]plannedFile, len(c.Files))
	for i := range c.Files {
		p.Files[i] = newPlannedFile(&c.Files[i])
		p.of[&c.Files[i]] = &p.Files[i]
	}
	return p
}

func newPlannedFile(f *criu.File) plannedFile {
	out := plannedFile{
		Path: text(f.Path), Type: typeText(f), Size: -1, BuildID: hex.EncodeToString(f.BuildID), Deleted: f.Deleted, From: originOf(f),
	}
	if f.HostPath != f.Path {
		out.HostPath = text(f.HostPath)
	}
	if f.SizeKnown {
		out.Size = f.Size
	}
	seen := make(map[string]bool)
	for _, r := range f.Refs {
		if s := refText(f, &r); !seen[s] {
			seen[s] = true
			out.Refs = append(out.Refs, text(s))
		}
	}
	return out
}

// originOf is where f comes from as far as the images tell.
func originOf(f *criu.File) string {
	switch {
	case f.Place == criu.InImages:
		return fromImages
	case f.Stranded:
		return fromNowhere
	case f.Place == criu.OnDisk:
		return fromSource
	case f.Deleted, f.TTY == "pty", slices.ContainsFunc(f.Refs, func(r criu.Ref) bool { return r.Kind == criu.Bound }):
		return fromNothing
	case f.HostPath != "", f.Tree != "":
		return fromSource
	}
	return fromHost
}

func refText(f *criu.File, r *criu.Ref) string {
	of := ""
	if r.PID != 0 {
		of = fmt.Sprintf(" of %d", r.PID)
	}
	switch {
	case r.Kind == criu.Descriptor:
		return fmt.Sprintf("descriptor %d%s", r.FD, of)
	case r.Kind == criu.Mapping && r.Shared:
		return "shared mapping" + of
	case r.Kind == criu.Other && f.Place == criu.OnDisk:
		return "other name of a file in use"
	}
	return r.Kind.String() + of
}

func (p *imagesPlan) add(o criu.Obstacle) {
	p.Obstacles = append(p.Obstacles, plannedHurdle{o.Level, o.What, text(o.Path), o.PID, text(o.Why), text(o.Remedy)})
}

// checkPages looks whether the memory is all there.
func (p *imagesPlan) checkPages() {
	var ie *criu.ImageError
	if err := p.c.CheckPages(); errors.As(err, &ie) {
		p.add(criu.Obstacle{Level: criu.Blocker, What: "memory", Path: ie.File, Why: ie.Err.Error(), Remedy: "copy the images again, all of them"})
	} else if err != nil {
		p.add(criu.Obstacle{Level: criu.Blocker, What: "memory", Why: err.Error()})
	}
}

// fetchUnit is about what one access to a missing part of a file brings, bytes.
const fetchUnit = 128 << 10

// count adds up what has to come from where.
func (p *imagesPlan) count() {
	p.First.Images, p.All.Images, p.Lazy = p.c.Memory, p.c.Memory, p.c.LazyMemory
	for i := range p.c.Files {
		f := &p.c.Files[i]
		pf := p.of[f]
		size := max(pf.Size, 0)
		if pf.Type != typeFile {
			continue
		}
		switch pf.From {
		case fromSource:
			pf.Bytes = size
			p.All.Source += size
			p.First.Source += firstBytes(f, size)
		case fromHere:
			p.All.Here += size
			p.First.Here += firstBytes(f, size)
		case fromImages:
			p.First.Images += size
			p.All.Images += size
		}
	}
}

// firstBytes is how much of f is read before its tasks run: the head of a program
// or library, whose build-id CRIU compares, and the pages that threads go on in.
func firstBytes(f *criu.File, size int64) (n int64) {
	units := make(map[int64]bool)
	if f.BuildID != nil {
		units[0] = true
	}
	for _, r := range f.Refs {
		for _, off := range r.Next {
			units[off/fetchUnit] = true
		}
	}
	for u := range units {
		n += max(0, min(fetchUnit, size-u*fetchUnit))
	}
	return n
}

// isStillThere compares what a task executes with what a process of its number on
// the source does.
func isStillThere(c *criu.Checkpoint, exe func(pid uint32) string) bool {
	if c.PidNS || len(c.Tasks) == 0 {
		return false // the numbers are others outside
	}
	now := exe(c.Tasks[0].PID)
	for i := range c.Files {
		for _, r := range c.Files[i].Refs {
			if r.Kind == criu.Executable && r.PID == c.Tasks[0].PID {
				return now == c.Files[i].Path
			}
		}
	}
	return false
}

// sourceTarget is --from as a layer: of that host's whole tree, if it names no directory.
func sourceTarget(from string) string {
	rest, url := strings.CutPrefix(from, "ssh://")
	if url {
		if strings.Contains(rest, "/") {
			return from
		}
		return from + "/"
	}
	if strings.Contains(from[strings.LastIndex(from, "]")+1:], ":") { // behind an IPv6 address
		return from
	}
	return from + ":/"
}

// notImages says what to give instead of path.
func notImages(path string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%q: %w", path, bare(err))
	}
	return usageErrorf("migratefs plan: %q holds no images of CRIU: give a checkpoint (a directory or an archive), or two directories, OLD and NEW", path)
}
