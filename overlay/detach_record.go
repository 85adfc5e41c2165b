package overlay

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// WORK/detached says that a mount was detached, and is what its sources are from then
// on. It is written whole, under another name, synced and renamed. Its lines:
//
//	migratefs detached 1               the version
//	at 2026-11-23T10:00:00Z            when
//	scope "words"                      what had to be here
//	settling                           there if settle has begun: no lower counts any more
//	source "ID"                        one for each lower on another host, the highest first
//	dir MODE UID GID SIZE MTIME "path" a directory of it, all names of which are known
//	left MODE UID GID SIZE MTIME "name" a name in it that is not here
//	end SUM                            CRC-32C of all above, in hexadecimal
//
// MODE is octal with the type, MTIME whole seconds and nanoseconds as 1.000000001, and
// what is not known is "-". Strings are quoted as Go quotes them.

const (
	detachedFile    = "detached"
	detachedTemp    = copyup.TempPrefix + detachedFile // swept by the next mount
	detachedVersion = "migratefs detached 1"
)

// Departure is what WORK/detached says.
type Departure struct {
	When     time.Time
	Scope    string
	Settling bool

	sources []*departed
}

// Sources returns how many lowers on other hosts the mount had.
func (d *Departure) Sources() int { return len(d.sources) }

// Left returns how many names stayed on them, of those that are known.
func (d *Departure) Left() (n int64) {
	for _, s := range d.sources {
		n += s.left()
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (d *Departure) encode() []byte {
	b := fmt.Appendf(nil, "%s\nat %s\nscope %q\n", detachedVersion, d.When.UTC().Format(time.RFC3339), d.Scope)
	if d.Settling {
		b = append(b, "settling\n"...)
	}
	for _, s := range d.sources {
		b = fmt.Appendf(b, "source %q\n", s.id)
		for _, p := range slices.Sorted(maps.Keys(s.dirs)) {
			dir := s.dirs[p]
			b = appendLeft(b, "dir", &dir.attr, string(p))
			for _, name := range slices.Sorted(maps.Keys(dir.left)) {
				a := dir.left[name]
				b = appendLeft(b, "left", &a, name)
			}
		}
	}
	return fmt.Appendf(b, "end %08x\n", crc32.Checksum(b, castagnoli))
}

func appendLeft(b []byte, what string, a *layers.Attr, name string) []byte {
	owner, size, mtime := "- -", "-", "-"
	if a.Has(layers.KnownOwner) {
		owner = fmt.Sprintf("%d %d", a.UID, a.GID)
	}
	if a.Has(layers.KnownSize) {
		size = strconv.FormatInt(a.Size, 10)
	}
	if a.Has(layers.KnownTimes) {
		mtime = fmt.Sprintf("%d.%09d", a.Mtime.Sec, a.Mtime.Nsec)
	}
	return fmt.Appendf(b, "%s %o %s %s %s %q\n", what, a.Mode, owner, size, mtime, name)
}

var errRecord = fmt.Errorf("WORK/%s: %w", detachedFile, layers.ErrCorrupt)

// parseDeparture reads what encode has written.
func parseDeparture(b []byte) (*Departure, error) {
	body, sum, ok := bytes.Cut(b, []byte("\nend "))
	if !ok || string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(b[:len(body)+1], castagnoli)) {
		return nil, fmt.Errorf("%w: it is not whole", errRecord)
	}
	d := &Departure{}
	p := departureParser{d: d}
	n := 0
	for line := range strings.SplitSeq(string(body), "\n") {
		if n++; !p.line(n, line) {
			return nil, fmt.Errorf("%w: line %d: %.80q", errRecord, n, line)
		}
	}
	if len(d.sources) == 0 {
		return nil, fmt.Errorf("%w: it names no source", errRecord)
	}
	return d, nil
}

type departureParser struct {
	d   *Departure
	dir *departedDir
}

func (p *departureParser) line(n int, s string) (ok bool) {
	word, rest, _ := strings.Cut(s, " ")
	var err error
	switch {
	case n == 1:
		return s == detachedVersion
	case word == "at":
		p.d.When, err = time.Parse(time.RFC3339, rest)
	case word == "scope":
		p.d.Scope, err = strconv.Unquote(rest)
	case s == "settling":
		p.d.Settling = true
	case word == "source":
		src := &departed{dirs: map[layers.Path]*departedDir{}}
		src.id, err = strconv.Unquote(rest)
		p.d.sources, p.dir = append(p.d.sources, src), nil
	case word == "dir" && len(p.d.sources) > 0:
		a, path, ok := parseLeft(rest)
		if !ok || !layers.Path(path).Valid() || !a.IsDir() {
			return false
		}
		p.dir = &departedDir{attr: a, left: map[string]layers.Attr{}}
		p.d.sources[len(p.d.sources)-1].dirs[layers.Path(path)] = p.dir
	case word == "left" && p.dir != nil:
		a, name, ok := parseLeft(rest)
		if !ok || !layers.ValidName(name) {
			return false
		}
		p.dir.left[name] = a
	default:
		return false
	}
	return err == nil
}

func parseLeft(s string) (a layers.Attr, name string, ok bool) {
	f := strings.SplitN(s, " ", 6)
	if len(f) != 6 {
		return a, "", false
	}
	number := func(s string, base, bits int) uint32 {
		v, e := strconv.ParseUint(s, base, bits)
		ok = ok && e == nil
		return uint32(v)
	}
	ok = true
	a.Mode = number(f[0], 8, 32)
	if f[1] != "-" {
		a.Known |= layers.KnownOwner
		a.UID, a.GID = number(f[1], 10, 32), number(f[2], 10, 32)
	}
	var err, terr error
	if f[3] != "-" {
		a.Known |= layers.KnownSize
		a.Size, err = strconv.ParseInt(f[3], 10, 64)
	}
	if f[4] != "-" {
		a.Known |= layers.KnownTimes
		sec, nsec, _ := strings.Cut(f[4], ".")
		a.Mtime.Sec, terr = strconv.ParseInt(sec, 10, 64)
		a.Mtime.Nsec = number(nsec, 10, 30)
		a.Atime = a.Mtime
	}
	name, qerr := strconv.Unquote(f[5])
	return a, name, ok && errors.Join(err, terr, qerr) == nil && a.Size >= 0
}

// ReadDeparture reads WORK/detached of the work directory dirfd; nil, nil if there is
// none.
func ReadDeparture(dirfd int) (*Departure, error) {
	fd, err := sys.OpenAt(dirfd, detachedFile, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := readAll(fd)
	if err != nil {
		return nil, err
	}
	return parseDeparture(b)
}

func readAll(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	b := make([]byte, st.Size)
	n, err := sys.Pread(fd, b, 0)
	return b[:n], err
}

// prepare writes d beside WORK/detached, durably; publish, which is one rename, makes it
// that.
func (d *Departure) prepare(work int) error {
	if err := sys.Unlink(work, detachedTemp); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd, err := sys.Create(work, detachedTemp, unix.O_WRONLY|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = sys.Pwrite(fd, d.encode(), 0)
	err = cmp.Or(err, sys.Fsync(fd), unix.Close(fd))
	if err != nil {
		_ = sys.Unlink(work, detachedTemp)
	}
	return err
}

func (d *Departure) publish(work int) error {
	return sys.Rename(work, detachedTemp, work, detachedFile, 0)
}

// write makes d what WORK/detached says, durably.
func (d *Departure) write(work int) error {
	if err := d.prepare(work); err != nil {
		return err
	}
	if err := d.publish(work); err != nil {
		return err
	}
	return copyup.SyncDir(work, copyup.Config{})
}
