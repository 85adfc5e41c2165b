package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// bugreportFlags are the flags of migratefs bugreport.
type bugreportFlags struct {
	file  string
	names bool
}

func newBugreportCommand() *cobra.Command {
	var f bugreportFlags
	c := &cobra.Command{
		Use:   "bugreport [-o FILE] [--names] [MOUNTPOINT]",
		Short: "Write down what whoever looks into a problem needs to know, and no names",
		Long: `Write down what whoever looks into a problem needs to know of this machine and of a mount, or of all: versions,
what the kernel offers, options, the filesystems of the layers, how the mount is, its metrics, its last log messages, and
what its daemon is doing. It is one file of plain text, for its owner alone, to be read before it is sent.

Names of files, hosts and users have tokens in their place (path-1, host-1), the same one for the same name, unless
--names is given. So does every word of a message that is not one of this program's own. Numbers stay: sizes, times,
process and user ids. Content of files, environment variables, keys and commands in options are never in it.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageErrorf("migratefs bugreport: give one mountpoint, or none for all, got %q", args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return f.run(c.OutOrStdout(), strings.Join(args, ""))
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.file, "output", "o", "", "write `FILE`, which must not be there yet, or - for standard output; by default migratefs-bugreport-TIME.txt in this directory")
	fl.BoolVar(&f.names, "names", false, "leave names of files, hosts and users as they are")
	return c
}

func (f *bugreportFlags) run(out io.Writer, point string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	all, err := findMounts(point)
	if err != nil {
		return err
	}
	r := &bugreport{tokens: newTokens(f.names), when: time.Now()}
	r.gather(ctx, askAll(ctx, all))
	if ctx.Err() != nil {
		return errors.New("interrupted: nothing is written")
	}
	if f.file == "-" {
		_, err := out.Write(r.Bytes())
		return err
	}
	name := f.file
	if name == "" {
		name = r.when.Format("migratefs-bugreport-20060102-150405.txt")
	}
	if err := writeNew(name, r.Bytes()); err != nil {
		return fmt.Errorf("%q: %w: name another file with -o", name, bare(err))
	}
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	fmt.Fprintf(out, "%s is written. Read it before you send it.\n", quotedText(name))
	fmt.Fprint(out, r.leftOut())
	return nil
}

// writeNew writes a file that was not there, for its owner alone. What fails leaves
// none.
func writeNew(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(name)
	}
	return err
}

// bugreport is one while it is put together.
type bugreport struct {
	bytes.Buffer
	tokens  *tokens
	when    time.Time
	missing []string // what could not be had
}

func (r *bugreport) section(format string, args ...any) {
	title := fmt.Sprintf(format, args...)
	fmt.Fprintf(r, "\n%s\n%s\n\n", title, strings.Repeat("=", len(title)))
}

func (r *bugreport) line(format string, args ...any) {
	r.WriteString(oneLine(fmt.Sprintf(format, args...)) + "\n")
}

// lacks notes that something could not be had.
func (r *bugreport) lacks(format string, args ...any) {
	text := oneLine(fmt.Sprintf(format, args...))
	r.missing = append(r.missing, text)
	r.line("(not to be had: %s)", text)
}

// gather puts it together. All names that are known are told to the tokens before
// anything is written.
func (r *bugreport) gather(ctx context.Context, all []*seenMount) {
	mounts := make([]*reported, len(all))
	for i, s := range all {
		mounts[i] = r.look(s)
	}
	r.line("migratefs bugreport of %s", r.when.UTC().Format(time.RFC3339))
	r.line("%s", map[bool]string{
		true:  "Names are as they are.",
		false: "Names have tokens in their place: path-1, name-1, host-1, user-1. The same one is the same name.",
	}[r.tokens.off])
	r.programs(ctx)
	r.machine()
	if len(mounts) == 0 {
		r.section("Mounts")
		r.line("nothing is mounted")
	}
	for _, m := range mounts {
		r.mount(ctx, m)
	}
	r.section("Left out")
	r.WriteString(r.leftOut())
}

// leftOut says what is not in it.
func (r *bugreport) leftOut() string {
	var b strings.Builder
	fmt.Fprintln(&b, "Not in it: content of files, environment variables, keys, commands in options.")
	switch {
	case r.tokens.off:
		fmt.Fprintln(&b, "Names of files, hosts and users ARE in it (--names).")
	default:
		fmt.Fprintf(&b, "Names of files, hosts and users: %s stand in the place of them; --names leaves them as they are.\n", countText(uint64(len(r.tokens.given)), "token", "tokens"))
	}
	for _, m := range r.missing {
		fmt.Fprintf(&b, "Not to be had: %s.\n", m)
	}
	return b.String()
}

func (r *bugreport) programs(ctx context.Context) {
	r.section("Versions")
	r.line("migratefs %s, %s %s", build.short(), build.Go, build.System)
	for _, path := range sortedKeys(build.Modules) {
		r.line("  %s %s", path, build.Modules[path])
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.line("kernel %s %s %s", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	r.line("distribution %s", distribution())
	for _, p := range []struct{ name, arg string }{{"ssh", "-V"}, {"criu", "--version"}, {"fusermount3", "--version"}} {
		path, err := exec.LookPath(p.name)
		if err != nil {
			r.line("%s is not there", p.name)
			continue
		}
		r.line("%s: %s", p.name, firstLine(path, p.arg))
	}
	r.line("root %v, initial user namespace %v", isRoot(), initialUserNS())
}

// distribution is what os-release(5) says this is.
func distribution() string {
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var text []string
		for line := range strings.Lines(string(b)) {
			key, v, _ := strings.Cut(strings.TrimSpace(line), "=")
			if key == "ID" || key == "VERSION_ID" || key == "PRETTY_NAME" {
				text = append(text, key+"="+v)
			}
		}
		return strings.Join(text, " ")
	}
	return "is not known"
}

// machine says what doctor says, of the machine alone: it tries out no directory.
func (r *bugreport) machine() {
	r.section("What this machine offers (migratefs doctor)")
	d, err := diagnose(nil)
	if err != nil {
		r.lacks("what this machine offers: %s", r.tokens.text(err.Error()))
		return
	}
	for _, f := range d.Findings {
		line := map[bool]string{true: "yes ", false: "no  "}[f.There] + f.Group + ": " + f.What
		switch path, _, _ := strings.Cut(f.Detail, ", "); {
		case strings.HasPrefix(path, "/"): // its version is told above
			line += ": " + r.tokens.path(path)
		case f.Detail != "":
			line += ": " + r.tokens.text(f.Detail)
		}
		r.line("%s", line)
	}
}
