package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/control"
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

// watchMounts goes on showing the mounts until ctx ends: the picture is drawn anew on
// a terminal; else each mount has a line (with --json an object), now and then.
func (f *statusFlags) watchMounts(ctx context.Context, out io.Writer, point string) error {
	if isTerminal(out) && !f.json {
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
		return text + shownName(s.point) + " " + s.why()
	}
	text += headline(s)
	if fl := &s.status.Fill; fl.Files > 0 {
		text += fmt.Sprintf(", %d%%, %s", percent(fl.Here, fl.Here+fl.Missing), fillText(fl))
	}
	for i := range s.status.Drains {
		text += "; draining: " + drainingText(&s.status.Drains[i])
	}
	if why := s.needs(); why != "" {
		text += ": " + why
	}
	return text
}

// picture is a mount as it is drawn, by another goroutine.
type picture struct {
	s   atomic.Pointer[seenMount] // as it was asked last
	bar *mpb.Bar
}

// draw draws all mounts, one below the other, each with a bar while it is filled.
func (f *statusFlags) draw(ctx context.Context, out io.Writer, point string) error {
	refresh := make(chan any)
	p := mpb.NewWithContext(ctx, mpb.WithOutput(out), mpb.WithManualRefresh(refresh))
	pictures := map[string]*picture{}
	for {
		found, err := findMounts(point)
		if err != nil {
			return err
		}
		here := map[string]bool{}
		for _, s := range askAll(ctx, found) {
			if ctx.Err() != nil {
				return nil
			}
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
		select {
		case refresh <- time.Now():
		case <-ctx.Done():
			return nil
		}
		if sleep(ctx, f.interval) != nil {
			return nil
		}
	}
}

func newPicture(p *mpb.Progress, s *seenMount) *picture {
	pic := &picture{}
	pic.s.Store(s)
	text := mpb.BarFillerFunc(func(w io.Writer, _ decor.Statistics) error {
		showMount(w, pic.s.Load(), time.Now(), true)
		return nil
	})
	bar := mpb.BarStyle().Lbound("  [").Rbound("]").Filler("#").Tip("#").Padding("-").Build()
	pic.bar = p.MustAdd(1, mpb.BarFillerFunc(func(w io.Writer, st decor.Statistics) error {
		if pic.filling() == nil {
			return nil
		}
		return bar.Fill(w, st)
	}),
		mpb.BarExtender(text, true),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			fl := pic.filling()
			if fl == nil {
				return ""
			}
			return fmt.Sprintf(" %d%%  %s of %s", percent(fl.Here, fl.Here+fl.Missing), bytesText(fl.Here), bytesText(fl.Here+fl.Missing))
		})),
	)
	return pic
}

// filling is how far pending files are; nil if there are none.
func (pic *picture) filling() *control.Fill {
	if s := pic.s.Load(); s.status != nil && s.status.Fill.Files > 0 {
		return &s.status.Fill
	}
	return nil
}

func (pic *picture) update(s *seenMount) {
	pic.s.Store(s)
	if fl := pic.filling(); fl != nil {
		// Never complete: a bar that is cannot go back, and there may be more to fill.
		pic.bar.SetTotal(fl.Here+fl.Missing+1, false)
		pic.bar.SetCurrent(fl.Here)
	}
}
