package overlay

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// What a process has come to use since it was moved here belongs to what has to be here
// before the source may go, also after a remount. WORK/touched has the paths, in the
// lower, quoted, one on a line. It is appended to and not synced: what a crash of the
// host loses of it was used by nobody who still runs. A line that is no quoted path is
// no path.

const touchedFile = "touched"

// touchedMost bounds what is remembered: who reads everything wants ScopeAll.
const touchedMost = 1 << 19

type touched struct {
	names map[layers.Path]bool
	seq   uint64 // how often something came
	fd    int    // of the file, to append to; -1: none
	full  bool
	torn  bool // the file may end within a line
}

// touch notes that the file at path in the lower l is used. The caller may hold the
// lock of its node.
func (fs *FS) touch(r *lowerRef) {
	e := &fs.ending
	if !e.seeded || r.layer.leave == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &e.touched
	if t.names[r.path] || t.full {
		return
	}
	if len(t.names) >= touchedMost {
		t.full = true
		fs.log.Warn("more files were used than can be told apart from the rest: a detach needs all of the source here")
	}
	t.names[r.path] = true
	t.seq++
	if t.fd < 0 {
		return
	}
	var line []byte
	if t.torn {
		line = append(line, '\n')
	}
	_, err := sys.Append(t.fd, append(strconv.AppendQuote(line, string(r.path)), '\n'))
	if t.torn = err != nil; t.torn {
		fs.log.Warn("what was used is not known after a remount", "cause", err)
	}
}

// openTouched reads what was used before, where the lowers have names of a checkpoint.
func (fs *FS) openTouched() error {
	t := &fs.ending.touched
	t.names, t.fd = map[layers.Path]bool{}, -1
	if !fs.ending.seeded || fs.work < 0 || fs.Detached() {
		return nil
	}
	var text []byte
	fd, err := sys.OpenAt(fs.work, touchedFile, unix.O_RDONLY)
	if err == nil {
		text, err = readAll(fd)
		unix.Close(fd)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if p, err := strconv.Unquote(strings.TrimSuffix(line, "\n")); err == nil && layers.Path(p).Valid() {
			t.names[layers.Path(p)] = true
		}
	}
	t.torn = len(text) > 0 && text[len(text)-1] != '\n'
	t.fd, err = sys.OpenAt(fs.work, touchedFile, unix.O_WRONLY|unix.O_APPEND)
	if errors.Is(err, unix.ENOENT) {
		t.fd, err = sys.Create(fs.work, touchedFile, unix.O_WRONLY|unix.O_APPEND, 0o600)
	}
	return err
}
