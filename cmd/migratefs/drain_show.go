package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

// drainShow tells how far a drain is, and how it ended: progress and what stays go
// to stderr, the outcome to out. A JSON object is written as it becomes known: the
// names that stay may be many.
type drainShow struct {
	out      io.Writer
	json     bool
	dry      bool
	terminal bool
	partly   bool // not all of the lowers is meant
	lowers   []lowerSpec

	seen, total overlay.DrainCounts
	fails       int64

	mu          sync.Mutex // protects what follows, as far as line
	began       time.Time
	what        string
	onDisk      func() int64 // bytes in use on the lowers' filesystems, if that says anything
	firstOnDisk int64

	line chan string // what to print above the progress line
	done chan struct{}
}

func newDrainShow(out io.Writer, asJSON, dry bool) *drainShow {
	s := &drainShow{out: out, json: asJSON, dry: dry}
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	s.terminal = err == nil
	if s.json {
		fmt.Fprint(out, `{"failed":[`)
	}
	return s
}

// drainStays is a name that stays, in the JSON object.
type drainStays struct {
	Path   copyup.Quoted `json:"path"`
	Lower  copyup.Quoted `json:"lower"`
	Errno  string        `json:"errno"`
	Reason copyup.Quoted `json:"reason"`
}

// failed is told of names that stay, one at a time.
func (s *drainShow) failed(f overlay.DrainFailure) {
	s.fails++
	if s.json {
		text, _ := json.Marshal(drainStays{copyup.Quoted(f.Path), copyup.Quoted(s.lowers[f.Lower].text), unix.ErrnoName(f.Errno()), copyup.Quoted(f.Err.Error())})
		if s.fails > 1 {
			fmt.Fprint(s.out, ",")
		}
		fmt.Fprintf(s.out, "\n%s", text)
		return
	}
	s.line <- fmt.Sprintf("stays: %q: %s", "/"+string(f.Path), oneLine(f.Err.Error()))
}

// start begins to show progress: on a terminal one line that is written over, else
// a line each minute.
func (s *drainShow) start(what string) {
	s.mu.Lock()
	s.what, s.began = what, time.Now()
	s.mu.Unlock()
	s.line, s.done = make(chan string), make(chan struct{})
	every := time.Minute
	if s.terminal {
		every = time.Second
	}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case text, more := <-s.line:
				s.clear()
				if !more {
					return
				}
				fmt.Fprintln(os.Stderr, text)
			case <-tick.C:
				s.clear()
				if s.terminal {
					fmt.Fprint(os.Stderr, drainText(s.now()))
				} else {
					fmt.Fprintln(os.Stderr, drainText(s.now()))
				}
			}
		}
	}()
}

func (s *drainShow) clear() {
	if s.terminal {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

func (s *drainShow) stop() {
	close(s.line)
	<-s.done
}

// now is how far it is.
func (s *drainShow) now() *control.Drain {
	s.mu.Lock()
	what, began, onDisk, first := s.what, s.began, s.onDisk, s.firstOnDisk
	s.mu.Unlock()
	took := time.Since(began)
	d := &control.Drain{Phase: "moving", Seconds: took.Seconds()}
	if what != "" {
		c := &s.total
		if s.dry {
			c = &s.seen
		}
		d.Phase, d.Files, d.Bytes = what, c.Files.Load(), c.Bytes.Load()
		return d
	}
	d.Files, d.Bytes, d.Stay = s.seen.Files.Load(), s.seen.Bytes.Load(), s.seen.Left.Load()
	d.Rate = float64(d.Bytes) / max(took.Seconds(), 1e-3)
	left := time.Duration(-1)
	switch {
	case s.total.Known.Load():
		files, bytes := s.total.Files.Load(), s.total.Bytes.Load()
		d.AllFiles, d.AllBytes = &files, &bytes
		left = max(remaining(took, d.Files, files), remaining(took, d.Bytes, bytes))
	case onDisk != nil:
		// What is in use on the lowers' filesystems says how much there is.
		left, d.Guessed = remaining(took, first-onDisk(), first), true
	}
	if left >= 0 {
		seconds := left.Seconds()
		d.Left = &seconds
	}
	return d
}

// drainText is that on one line: files, bytes, rate, and how long it will take, if
// that can be said.
func drainText(d *control.Drain) string {
	if d.Phase != "moving" {
		return fmt.Sprintf("%s: %d files, %s", shownName(d.Phase), d.Files, bytesText(d.Bytes))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d files", d.Files)
	if d.AllFiles != nil {
		fmt.Fprintf(&b, " of %d", *d.AllFiles)
	}
	fmt.Fprintf(&b, ", %s", bytesText(d.Bytes))
	if d.AllBytes != nil {
		fmt.Fprintf(&b, " of %s", bytesText(*d.AllBytes))
	}
	fmt.Fprintf(&b, ", %s/s", bytesText(int64(d.Rate)))
	if d.Stay > 0 {
		fmt.Fprintf(&b, ", %d stay", d.Stay)
	}
	switch {
	case d.Left == nil:
		b.WriteString(", time left not known")
	case d.Guessed:
		fmt.Fprintf(&b, ", about %s left", spanText(*d.Left))
	default:
		fmt.Fprintf(&b, ", %s left", spanText(*d.Left))
	}
	return b.String()
}

func remaining(took time.Duration, done, total int64) time.Duration {
	switch {
	case done >= total:
		return 0
	case done <= 0:
		return -1
	}
	return time.Duration(float64(took) * float64(total-done) / float64(done))
}

// guess finds out whether what is in use on the lowers' filesystems says how much
// there is: they hold nothing else, and all of it is meant.
func (s *drainShow) guess(st *stack) {
	if s.partly || s.total.Known.Load() {
		return
	}
	var dirs []string
	for _, d := range st.dirs {
		if d.what != "lower" {
			continue
		}
		if m, ok := mountAt(d.real); !ok || m.point != d.real {
			return
		}
		dirs = append(dirs, d.real)
	}
	onDisk := func() (used int64) {
		for _, d := range dirs {
			var fs unix.Statfs_t
			if unix.Statfs(d, &fs) == nil {
				used += int64(fs.Blocks-fs.Bfree) * fs.Bsize
			}
		}
		return used
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onDisk, s.firstOnDisk = onDisk, onDisk()
}

// drainOutcome is the rest of the JSON object.
type drainOutcome struct {
	Left        int64         `json:"left"`        // of what was meant; with complete false, of what was looked at
	NotMeant    int64         `json:"not_meant"`   // by the selection, or other shards'
	Files       int64         `json:"files"`       // names that moved, or would
	Bytes       int64         `json:"bytes"`       // in them
	Directories int64         `json:"directories"` // that were removed from the lower
	Seconds     float64       `json:"seconds"`
	DryRun      bool          `json:"dry_run"`
	Complete    bool          `json:"complete"` // everything was looked at
	Error       copyup.Quoted `json:"error,omitempty"`
}

// end prints the outcome and returns what the command ends with.
func (s *drainShow) end(err error) error {
	interrupted := errors.Is(err, context.Canceled)
	o := drainOutcome{
		Left: s.seen.Left.Load(), NotMeant: s.seen.Other.Load(), Files: s.seen.Files.Load(), Bytes: s.seen.Bytes.Load(),
		Directories: s.seen.Dirs.Load(), Seconds: time.Since(s.began).Seconds(), DryRun: s.dry, Complete: err == nil,
	}
	if s.dry && err == nil {
		o.Left += o.Files
	}
	switch {
	case interrupted:
		o.Error = "interrupted"
	case err != nil:
		o.Error = copyup.Quoted(err.Error())
	}
	if s.json {
		text, jerr := json.Marshal(o)
		if jerr != nil {
			return jerr
		}
		fmt.Fprintf(s.out, "],\n%s\n", strings.TrimPrefix(string(text), "{"))
	} else {
		fmt.Fprintln(s.out, s.outcome(&o))
	}
	switch {
	case interrupted:
		return &codeError{exitFound, errors.New("interrupted: start it again to go on")}
	case err != nil:
		return err
	case s.dry || o.Left == 0:
		return nil
	}
	return &codeError{exitFound, fmt.Errorf("names left in the lower: %d", o.Left)}
}

func (s *drainShow) outcome(o *drainOutcome) string {
	others := ""
	if o.NotMeant > 0 {
		others = fmt.Sprintf("; files that are not meant: %d", o.NotMeant)
	}
	text := fmt.Sprintf("files moved: %d, %s; directories removed: %d", o.Files, bytesText(o.Bytes), o.Directories)
	switch {
	case s.dry:
		return fmt.Sprintf("files to move: %d, %s%s", o.Files, bytesText(o.Bytes), others)
	case !o.Complete:
		return text + "; not all was looked at"
	case o.Left > 0:
		return fmt.Sprintf("%s; names left in the lower: %d%s", text, o.Left, others)
	case s.partly:
		return text + "; nothing of what is meant is left in the lower" + others
	}
	return text + "; nothing is left in the lower"
}
