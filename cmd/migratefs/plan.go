package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
)

// planFlags are the flags of migratefs plan.
type planFlags struct {
	json    bool
	workers int
	images  imagesFlags // for a checkpoint
}

func newPlanCommand() *cobra.Command {
	var f planFlags
	c := &cobra.Command{
		Use:   "plan [--json] OLD NEW | IMAGES [-- criu options]",
		Short: "Say what a migration of a tree or a checkpoint would move, and whether it can work",
		Long: `Given two directories, walk OLD and say what a migration to NEW would move: files and bytes by age and
owner, hard links, sparse and special files; what of it NEW cannot hold, which is tried out there in a
temporary directory; and whether all fits into NEW's free space and the quotas of users and groups, and
of NEW itself (its project, quota groups of btrfs). Nothing is written to OLD.

Given a checkpoint (a directory that criu dump wrote, also on another host as user@host:/dir, or an archive of podman container checkpoint --export
or of the kubelet), say what its processes refer to and where each thing would come from: the source, an
identical copy on this host, this host's own /dev, /run and the like, the images, or nowhere; how many bytes
must arrive before the first instruction can run, and how many in all; and everything that would make the
restore fail. With --from, the source is asked and compared with the images. Nothing is touched anywhere.

Exit codes: 0 it fits, or can be restored; 3 not as it is; 1 something could not be looked at.`,
		Args: f.check,
		RunE: func(c *cobra.Command, args []string) error {
			if rest, args, ok := f.checkpoint(c, args); ok {
				ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
				defer stop()
				return f.images.run(ctx, c.OutOrStdout(), rest, args, f.json)
			}
			return f.run(c.OutOrStdout(), args[0], args[1])
		},
	}
	c.Flags().BoolVar(&f.json, "json", false, "print the report as one JSON object")
	c.Flags().IntVar(&f.workers, "workers", 0, "OLD NEW: how many directories are read at once")
	f.images.add(c)
	return c
}

// checkpoint returns the checkpoint that the arguments name, if they do, and
// CRIU's own.
func (f *planFlags) checkpoint(c *cobra.Command, args []string) (images string, rest []string, ok bool) {
	n := c.ArgsLenAtDash()
	if n < 0 {
		n = len(args)
	}
	if n != 1 {
		return "", nil, false
	}
	return args[0], args[1:], true
}

func (f *planFlags) check(c *cobra.Command, args []string) error {
	if f.workers < 0 {
		return usageErrorf("migratefs plan: --workers %d: want a number of directories to read at once", f.workers)
	}
	if images, _, ok := f.checkpoint(c, args); ok {
		if !looksLikeImages(images) {
			return notImages(images)
		}
		return nil
	}
	if len(args) != 2 || c.ArgsLenAtDash() >= 0 && c.ArgsLenAtDash() != 2 {
		return usageErrorf("migratefs plan: want two directories, OLD and NEW, or one checkpoint, got %q", args)
	}
	for _, name := range imageFlagNames {
		if c.Flags().Changed(name) {
			return usageErrorf("migratefs plan: --%s is for checkpoints: give IMAGES only", name)
		}
	}
	return nil
}

func (f *planFlags) run(out io.Writer, old, next string) error {
	if err := twoTrees(old, next); err != nil {
		return err
	}
	unix.Umask(0)
	signal.Ignore(unix.SIGXFSZ) // a size that is too large is an answer
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	cfg := copyup.PlanConfig{Old: old, New: next, Workers: f.workers, Seen: new(atomic.Int64)}
	end := f.progress(cfg.Seen)
	p, err := copyup.NewPlan(ctx, cfg)
	end()
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if below, err := mountsBelow(old); err == nil {
		p.Mounts = append(p.Mounts, below...)
	}
	nameOwners(ctx, p)
	if f.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(p)
	} else {
		err = writePlan(out, p)
	}
	switch {
	case err != nil:
		return err
	case p.Unread != nil:
		return fmt.Errorf("%d names in %q could not be looked at, so nothing is said of whether it fits: %s", p.Unread.Names, old, p.Unread.What)
	case !p.Fits:
		return &codeError{exitFound, fmt.Errorf("%q does not fit into %q as it is: see above", old, next)}
	}
	return nil
}

// twoTrees refuses directories of which one is in the other.
func twoTrees(old, next string) error {
	a, err := existingDir("OLD", old)
	if err != nil {
		return err
	}
	b, err := existingDir("NEW", next)
	if err != nil {
		return err
	}
	switch {
	case a == b:
		return fmt.Errorf("OLD %q and NEW %q are the same directory: name two", old, next)
	case isBelow(a, b), isBelow(b, a):
		return fmt.Errorf("of OLD %q and NEW %q one is inside the other: name two trees", old, next)
	}
	return nil
}

// existingDir is realDir for commands that mount nothing.
func existingDir(what, path string) (string, error) {
	real, err := realDir(what, path)
	var ce *codeError
	if errors.As(err, &ce) {
		err = ce.err
	}
	return real, err
}

// progress counts on a terminal what was seen, once a second.
func (f *planFlags) progress(seen *atomic.Int64) (end func()) {
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err != nil {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				fmt.Fprint(os.Stderr, "\r\x1b[K")
				return
			case <-time.After(time.Second):
				fmt.Fprintf(os.Stderr, "\r%d names seen", seen.Load())
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// mountsBelow lists what is mounted in dir: a migration sees through to what is
// under it, or does not, and its files are not counted.
func mountsBelow(dir string) (below []copyup.Quoted, err error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, err
	}
	all, err := mounts()
	for _, m := range all {
		if m.point != real && isBelow(m.point, real) {
			below = append(below, copyup.Quoted(m.point))
		}
	}
	return below, err
}

// nameOwners asks for the names of users and groups, as ls does.
func nameOwners(ctx context.Context, p *copyup.Plan) {
	users, groups := ownerNames(ctx, "passwd", p.Users), ownerNames(ctx, "group", p.Groups)
	for i := range p.Users {
		p.Users[i].Name = users[p.Users[i].ID]
	}
	for i := range p.Groups {
		p.Groups[i].Name = groups[p.Groups[i].ID]
	}
	for i := range p.Quotas {
		switch q := &p.Quotas[i]; q.Kind {
		case "user":
			q.Name = users[uint32(q.ID)]
		case "group":
			q.Name = groups[uint32(q.ID)]
		}
	}
}

func writePlan(out io.Writer, p *copyup.Plan) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line("%q to %q", p.Old, p.New)
	line("")
	line("files\t%d\t%s\t%s on disk", p.Files.Files, bytesText(p.Files.Bytes), bytesText(p.Files.Allocated))
	line("directories\t%d", p.Directories)
	line("symlinks\t%d", p.Symlinks)
	for _, k := range sortedKeys(p.Special) {
		line("%ss\t%d", k, p.Special[k])
	}
	if p.Sparse.Files > 0 {
		line("sparse files\t%d\t%s\t%s on disk", p.Sparse.Files, bytesText(p.Sparse.Bytes), bytesText(p.Sparse.Allocated))
	}
	if p.Largest != nil {
		line("largest file\t\t%s\t%q", bytesText(p.Largest.Bytes), string(p.Largest.Path))
	}
	if p.Links.Files > 0 {
		line("hard-linked files\t%d\twith %d names", p.Links.Files, p.Links.Names)
	}
	if p.Links.Outside > 0 {
		line("  of these\t%d\thave %d names outside of %q: those will not stay linked", p.Links.OutsideFiles, p.Links.Outside, p.Old)
	}
	for _, m := range p.Mounts {
		line("not counted\t\tanother filesystem is mounted on %q", string(m))
	}
	writeAges(line, "read", p.Atime)
	writeAges(line, "modified", p.Mtime)
	writeCharges(line, "user", p.Users)
	writeCharges(line, "group", p.Groups)
	writeFit(line, p)
	return w.Flush()
}

func writeAges(line func(string, ...any), what string, of []copyup.Age) {
	line("")
	line("last %s\tfiles\tbytes", what)
	for i, a := range of {
		if a.Files == 0 {
			continue
		}
		name := fmt.Sprintf("within %d days", a.Days)
		switch a.Days {
		case 0:
			name = "in the future"
		case 1:
			name = "within a day"
		case -1:
			name = fmt.Sprintf("more than %d days ago", of[i-1].Days)
		}
		line("  %s\t%d\t%s", name, a.Files, bytesText(a.Bytes))
	}
}

func writeCharges(line func(string, ...any), what string, of []copyup.Charge) {
	line("")
	line("%s\tinodes\tbytes\ttakes", what)
	for _, c := range of {
		line("  %s\t%d\t%s\t%s", ownerText(c.ID, c.Name), c.Files, bytesText(c.Bytes), bytesText(c.Need.Bytes))
	}
}

func writeFit(line func(string, ...any), p *copyup.Plan) {
	line("")
	inodes := fmt.Sprintf("%d inodes", p.Room.Inodes)
	if p.Room.Inodes < 0 {
		inodes = "any number of inodes"
	}
	line("it takes\t%d inodes\t%s", p.Need.Inodes, bytesText(p.Need.Bytes))
	line("there is room for\t%s\t%s", inodes, bytesText(p.Room.Bytes))
	if p.Same {
		line("both are one filesystem: what moves frees what it takes")
	}
	for _, q := range p.Quotas {
		says := "fits"
		switch {
		case !q.Fits:
			says = "DOES NOT FIT"
		case q.Over:
			says = "above the soft limit: the grace time begins"
		}
		who := q.Name
		if q.Kind == "user" || q.Kind == "group" || who == "" {
			who = ownerText(uint32(q.ID), q.Name)
		}
		line("quota of %s %s\t%d + %d of %s inodes\t%s + %s of %s\t%s", q.Kind, who,
			q.Used.Inodes, q.Need.Inodes, limitText(q.Hard.Inodes, false), bytesText(q.Used.Bytes), bytesText(q.Need.Bytes), limitText(q.Hard.Bytes, true), says)
	}
	if p.QuotaUnknown != "" {
		line("quotas are not known: %s", p.QuotaUnknown)
	}
	for _, x := range p.Issues {
		line("%s: %s: %d names, such as %q", x.Kind, x.What, x.Names, examplesOf(x.Paths))
	}
	if p.Unread != nil {
		line("NOT COUNTED: %d, such as %q: %s", p.Unread.Names, examplesOf(p.Unread.Paths), p.Unread.What)
	}
	line("")
	if p.Fits {
		line("It fits.")
	} else {
		line("It does not fit as it is.")
	}
}

func examplesOf(q []copyup.Quoted) (s []string) {
	for _, p := range q {
		s = append(s, string(p))
	}
	return s
}

func limitText(n int64, bytes bool) string {
	switch {
	case n == 0:
		return "unlimited"
	case bytes:
		return bytesText(n)
	}
	return fmt.Sprint(n)
}
