package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mattn/go-runewidth"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// plainLeast is how often lines are printed at most where there is no terminal.
const plainLeast = 10 * time.Second

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalSize is how many columns and lines a terminal has; 0 if it does not say, or is
// none.
func terminalSize(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 {
		return 0, 0
	}
	return int(ws.Col), int(ws.Row)
}

// watchMounts goes on showing the mounts until ctx ends: the picture is drawn anew on
// a terminal; else each mount has a line (with --json an object), now and then.
func (f *statusFlags) watchMounts(ctx context.Context, out io.Writer, point string) error {
	if _, height := terminalSize(out); height > 0 && !f.json && os.Getenv("TERM") != "dumb" {
		return f.draw(ctx, out, point)
	}
	for every := f.interval; ; {
		all, err := findMounts(point)
		if err != nil {
			return err
		}
		for _, s := range askAll(ctx, all) {
			if ctx.Err() != nil {
				return nil
			}
			if f.json {
				err = f.printJSON(out, s)
			} else {
				_, err = fmt.Fprintln(out, plainLine(s, time.Now()))
			}
			if err != nil {
				return err
			}
		}
		if !f.json && every == time.Second {
			every = plainLeast // nobody asked for more
		}
		if sleep(ctx, every) != nil {
			return nil
		}
	}
}

// plainLine is how a mount is on one line.
func plainLine(s *seenMount, now time.Time) string {
	text := now.Format("15:04:05 ")
	if s.status == nil {
		return onLine(text + shownName(s.point) + " " + s.why())
	}
	text += headline(s)
	if s.status.Fill.Files > 0 {
		part, all := progressOf(s.status)
		text += fmt.Sprintf(", %d%%, %s", percent(part, all), fillText(s.status))
	}
	for i := range s.status.Drains {
		text += "; draining: " + drainingText(&s.status.Drains[i])
	}
	if why := s.needs(); why != "" {
		text += ": " + why
	}
	return onLine(text)
}

// picture is a mount as it is drawn, by another goroutine.
type picture struct {
	s     atomic.Pointer[seenMount] // as it was asked last
	short atomic.Bool               // there is no room for more than a line and the bar
	bar   *mpb.Bar
}

// clearScreen takes away all that is on a terminal, and goes to its first line.
const clearScreen = "\x1b[H\x1b[2J"

// draw draws all mounts, one below the other, each with a bar while it is filled. The
// cursor stays visible, below the picture: whatever ends us leaves the terminal as it was.
func (f *statusFlags) draw(ctx context.Context, out io.Writer, point string) error {
	refresh, ended := make(chan any), make(chan any, 1)
	p := mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithManualRefresh(refresh), mpb.WithShutdownNotifier(ended))
	defer func() {
		p.Shutdown()
		fmt.Fprintln(out) // the terminal has written ^C here
	}()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	pictures := map[string]*picture{}
	empty := false
	for {
		found, err := findMounts(point)
		if err != nil {
			return err
		}
		here := map[string]bool{}
		found = askAll(ctx, found)
		if ctx.Err() != nil {
			return nil
		}
		for _, s := range found {
			here[s.dev] = true
			if pictures[s.dev] == nil {
				pictures[s.dev] = newPicture(p, s)
			}
			pictures[s.dev].update(s)
		}
		for dev, pic := range pictures {
			if !here[dev] {
				pic.bar.Abort(true)
				delete(pictures, dev)
			}
		}
		fit(pictures, out)
		if was := empty; len(found) == 0 && !was {
			_, _ = io.WriteString(p, "nothing is mounted\n")
		}
		empty = len(found) == 0
		select {
		case refresh <- time.Now():
		case <-ended:
			if ctx.Err() != nil {
				return nil
			}
			return errors.New("nothing can be drawn on this terminal any more")
		case <-ctx.Done():
			return nil
		}
		next := time.NewTimer(f.interval)
		select {
		case <-next.C:
		case <-resized:
			// Lines that are longer than the screen has become are broken, by some
			// terminals: where the picture begins is not known any more.
			_, _ = io.WriteString(p, clearScreen)
		case <-ctx.Done():
		}
		next.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// fit says whether all can be told of each mount: a picture that is higher than the
// terminal cannot be drawn anew in its place.
func fit(pictures map[string]*picture, out io.Writer) {
	lines := 0
	for _, pic := range pictures {
		lines += len(mountLines(pic.s.Load(), time.Now(), true)) + 1
	}
	_, height := terminalSize(out)
	for _, pic := range pictures {
		pic.short.Store(lines >= height)
	}
}

func newPicture(p *mpb.Progress, s *seenMount) *picture {
	pic := &picture{}
	pic.s.Store(s)
	text := mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		lines := mountLines(pic.s.Load(), time.Now(), true)
		if pic.short.Load() {
			lines = lines[:1]
		}
		// What is above a bar is written from the bar upwards.
		for _, line := range slices.Backward(lines) {
			// A line that the terminal breaks would be two.
			fmt.Fprintln(w, runewidth.Truncate(line, st.AvailableWidth, "…"))
		}
		return nil
	})
	bar := mpb.BarStyle().Lbound("[").Rbound("]").Filler("#").Tip("#").Padding("-").Build()
	// A bar that begins with a total keeps it.
	pic.bar = p.MustAdd(0, mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		const least = 12 // narrower, a bar says nothing
		if _, _, filling := pic.filling(); !filling || st.AvailableWidth < least {
			return nil
		}
		return bar.Fill(w, st)
	}),
		mpb.BarExtender(text, true),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			if _, _, filling := pic.filling(); !filling {
				return ""
			}
			return " "
		})),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			part, all, filling := pic.filling()
			if !filling {
				return ""
			}
			return fmt.Sprintf("%d%%  %s of %s", percent(part, all), bytesText(part), bytesText(all))
		})),
	)
	return pic
}

// filling is how far it is, if there is something to bring.
func (pic *picture) filling() (part, all int64, ok bool) {
	st := pic.s.Load().status
	if st == nil || st.Fill.Files == 0 {
		return 0, 0, false
	}
	part, all = progressOf(st)
	return part, all, true
}

func (pic *picture) update(s *seenMount) {
	pic.s.Store(s)
	if part, all, ok := pic.filling(); ok {
		// Never complete: a bar that is cannot go back, and there may be more to fill.
		pic.bar.SetTotal(all+1, false)
		pic.bar.SetCurrent(part)
	}
}
