package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
)

const typeFile = "file"

// typeText is what f is.
func typeText(f *criu.File) string {
	if f.TTY != "" {
		return "terminal"
	}
	return modeText(f.Mode)
}

// modeText names a file's type; most files of whose mode nothing is known are
// regular.
func modeText(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	}
	return typeFile
}

// originText is where something comes from, as people read it.
var originText = map[string]string{
	fromSource: "source", fromHere: "this host, identical", fromHost: "this host's own",
	fromImages: "images", fromNothing: "made anew", fromNowhere: "NOWHERE",
}

// maxNamed is how many files are named without --all.
const maxNamed = 40

func (p *imagesPlan) write(out io.Writer, all bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	p.writeHead(line)
	line("")
	p.writeFiles(line, all)
	line("")
	line("\tfrom the source\tfrom this host\tfrom the images")
	for _, b := range []struct {
		what string
		n    plannedBytes
	}{{"before the first instruction, about", p.First}, {"in all", p.All}} {
		line("%s\t%s\t%s\t%s", b.what, bytesText(b.n.Source), bytesText(b.n.Here), bytesText(b.n.Images))
	}
	if p.Lazy > 0 {
		line("later with restore --lazy-pages\t\t\t%s", bytesText(p.Lazy))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return p.writeVerdict(out)
}

func (p *imagesPlan) writeHead(line func(string, ...any)) {
	line("checkpoint %q", string(p.Images))
	if b := p.Container; b != nil {
		line("container\t%q of %s, image %q", string(b.Name), orUnknown(b.Engine), string(b.Image))
	}
	for i, t := range p.Processes {
		if i == maxNamed {
			line("\tand %d more processes", len(p.Processes)-i)
			break
		}
		of := ""
		if t.PPID != 0 {
			of = fmt.Sprintf(", child of %d", t.PPID)
		}
		line("process %d\t%q\t%d threads%s", t.PID, string(t.Command), t.Threads, of)
	}
	for _, m := range p.Mounts {
		dir := "not known: --map"
		if m.Dir != "" {
			dir = fmt.Sprintf("%q on the source", string(m.Dir))
		}
		line("mount %q\t%s\t%d files", string(m.Point), dir, m.Files)
	}
	if len(p.Options) > 0 {
		line("options for CRIU\t--%s", strings.Join(p.Options, " --"))
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "an unknown engine"
	}
	return s
}

func (p *imagesPlan) writeFiles(line func(string, ...any), all bool) {
	from := "from"
	if p.From == "" {
		from = "from (nobody was asked: --from)"
	}
	line("%s\ttype\tsize\treferred to by\tpath", from)
	left := 0
	for i := range p.Files {
		f := &p.Files[i]
		if !all && (f.Type == "directory" && f.From != fromNowhere || i-left >= maxNamed) {
			left++
			continue
		}
		size := "?"
		switch {
		case f.Type != typeFile:
			size = ""
		case f.Size >= 0:
			size = bytesText(f.Size)
		}
		path := fmt.Sprintf("%q", string(f.Path))
		if f.Deleted {
			path += " (deleted)"
		}
		line("%s\t%s\t%s\t%s\t%s", originText[f.From], f.Type, size, refsText(f.Refs), path)
	}
	if left > 0 {
		line("and %d more, directories among them: --all", left)
	}
}

func refsText(refs []text) string {
	switch len(refs) {
	case 0:
		return ""
	case 1, 2:
		var s []string
		for _, r := range refs {
			s = append(s, string(r))
		}
		return strings.Join(s, ", ")
	}
	return fmt.Sprintf("%s and %d more", string(refs[0]), len(refs)-1)
}

func (p *imagesPlan) writeVerdict(out io.Writer) error {
	var b strings.Builder
	blockers := 0
	b.WriteString("\n")
	for _, level := range []criu.Level{criu.Caution, criu.Blocker} {
		for _, h := range p.Obstacles {
			if h.Level != level {
				continue
			}
			o := criu.Obstacle{What: h.What, Path: string(h.Path), PID: h.PID, Why: string(h.Why), Remedy: string(h.Remedy)}
			mark := "note"
			if level == criu.Blocker {
				mark = "FAILS"
				blockers++
			}
			fmt.Fprintf(&b, "%s: %s\n", mark, oneLine(o.String()))
		}
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "note: %s\n", oneLine(string(w)))
	}
	if blockers == 0 {
		b.WriteString("It can be restored here.\n")
	} else {
		fmt.Fprintf(&b, "It cannot be restored here as it is: %d reasons.\n", blockers)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
