package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// tortureOptions keep the cache small.
const tortureOptions = ",cache_size=4M"

// mostBytes bounds a file.
const mostBytes = 4 << 20

// errDropped: the open file was given up with the daemon that had it.
var errDropped = errors.New("the file was open in a daemon that has died")

func (c *crew) anyDir() *folder { return c.dirs[c.rand.IntN(len(c.dirs))] }

// anyFile returns a file there is; ino is nil if there is none.
func (c *crew) anyFile() (d *folder, name string, ino *inode) {
	d = c.anyDir()
	names := slices.Sorted(maps.Keys(d.files))
	if len(names) == 0 {
		return d, "", nil
	}
	name = names[c.rand.IntN(len(names))]
	return d, name, d.files[name]
}

func (c *crew) newName() string {
	c.serial++
	return fmt.Sprintf("n%d", c.serial)
}

// bytesFor returns what to write, and where: mostly within a file of size bytes.
func (c *crew) bytesFor(size int) (off int, b []byte) {
	off = c.rand.IntN(size + 1 + c.rand.IntN(20_000))
	n := 1 + c.rand.IntN(100)
	if c.rand.IntN(2) == 0 {
		n = 1 + c.rand.IntN(64<<10)
	}
	n = max(1, min(n, mostBytes-off))
	b = make([]byte, n)
	for i := range b {
		b[i] = byte(c.rand.Uint32())
	}
	return off, b
}

// overwritten is data with b at off.
func overwritten(data []byte, off int, b []byte) []byte {
	out := make([]byte, max(len(data), off+len(b)))
	copy(out, data)
	copy(out[off:], b)
	return out
}

// resized is data with another size.
func resized(data []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, data)
	return out
}

// choose chooses an operation; nil if that one cannot be now.
func (c *crew) choose() *attempt {
	d, name, ino := c.anyFile()
	n := c.rand.IntN(100)
	if ino == nil && n < 84 {
		n = 84
	}
	if len(c.open) == 0 && n >= 60 && n < 78 {
		n -= 60
	}
	at := func(what string) string { return fmt.Sprintf("%s %s/%s", what, d.name, name) }
	switch {
	case n < 20:
		return c.readRange(at("read"), d, name, ino)
	case n < 27:
		return &attempt{what: at("read all of"), do: func() error { return c.readWhole(d, name, ino.data) }}
	case n < 30:
		return &attempt{what: at("stat"), do: func() error { return c.stat(d, name, ino) }}
	case n < 44:
		return c.write(at("write"), d, name, ino, os.O_WRONLY)
	case n < 48:
		return c.write(at("append to"), d, name, ino, os.O_WRONLY|os.O_APPEND)
	case n < 54:
		return c.truncate(at("truncate"), d, name, ino)
	case n < 60:
		return c.openFile(at("open"), d, name, ino)
	case n < 68:
		return c.readHandle()
	case n < 75:
		return c.writeHandle()
	case n < 78:
		h := c.open[0]
		return &attempt{what: "close", do: func() error {
			if len(c.open) > 0 && c.open[0] == h {
				c.open = c.open[1:]
				h.f.Close()
			}
			return nil
		}}
	case n < 81:
		return c.unlink(at("unlink"), d, name)
	case n < 84:
		return c.link(at("link"), d, name, ino)
	case n < 88:
		return c.create(c.anyDir(), c.newName())
	case n < 92:
		return &attempt{what: "list " + d.name, do: func() error { return c.list(d) }}
	case n < 93:
		return c.renameDir(d)
	}
	if ino == nil {
		return nil
	}
	return c.rename(at("rename"), d, name, ino)
}

// compare says what is wrong with the n bytes read at off, given what must be. A
// read that has failed in between brings a part.
func compare(got []byte, off int, want []byte, err error) error {
	end := min(max(off, 0)+len(got), len(want))
	if off+len(got) > len(want) && len(got) > 0 {
		return wrongf("%d bytes at %d of a file of %d", len(got), off, len(want))
	}
	if len(got) > 0 && !bytes.Equal(got, want[off:end]) {
		i := 0
		for got[i] == want[off+i] {
			i++
		}
		return wrongf("wrong byte at %d of %d: %#x in place of %#x", off+i, len(want), got[i], want[off+i])
	}
	return err
}

func (c *crew) readRange(what string, d *folder, name string, ino *inode) *attempt {
	off, n := c.rand.IntN(len(ino.data)+1), 1+c.rand.IntN(100_000)
	return &attempt{what: what, do: func() error {
		f, err := os.Open(c.path(d, name))
		if err != nil {
			return err
		}
		defer f.Close()
		return readAt(f, off, n, ino.data)
	}}
}

// readAt reads n bytes at off of what must hold want.
func readAt(f *os.File, off, n int, want []byte) error {
	b := make([]byte, n)
	n, err := f.ReadAt(b, int64(off))
	if errors.Is(err, io.EOF) {
		if off+n < len(want) {
			return wrongf("the end at %d of %d", off+n, len(want))
		}
		err = nil
	}
	return compare(b[:n], off, want, err)
}

func (c *crew) readWhole(d *folder, name string, want []byte) error {
	f, err := os.Open(c.path(d, name))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err == nil && len(got) < len(want) {
		return wrongf("%d bytes of %d", len(got), len(want))
	}
	return compare(got, 0, want, err)
}

func (c *crew) stat(d *folder, name string, ino *inode) error {
	fi, err := os.Lstat(c.path(d, name))
	if err == nil && fi.Size() != int64(len(ino.data)) {
		return wrongf("size %d, want %d", fi.Size(), len(ino.data))
	}
	return err
}

func (c *crew) list(d *folder) error {
	entries, err := os.ReadDir(c.path(d, ""))
	if err != nil {
		return err
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := slices.Sorted(maps.Keys(d.files)); !slices.Equal(got, want) {
		return wrongf("%q, want %q", got, want)
	}
	return nil
}

// become returns the two parts of an attempt to turn what ino holds into next. One
// that has failed may have been done in part.
func (c *crew) become(ino *inode, next func() []byte, read func() ([]byte, error)) (apply func(), settle func() error) {
	return func() { ino.data = next() }, func() error {
		got, err := read()
		if err != nil {
			return err
		}
		was, will := ino.data, next()
		if len(got) < min(len(was), len(will)) || len(got) > max(len(was), len(will)) {
			return wrongf("size %d, which was %d and should become %d", len(got), len(was), len(will))
		}
		for i, x := range got {
			if !(i < len(was) && x == was[i] || i < len(will) && x == will[i]) {
				return wrongf("byte %d of %d is neither the old nor the new one", i, len(got))
			}
		}
		ino.data = got
		return nil
	}
}

func (c *crew) byName(d *folder, name string) func() ([]byte, error) {
	return func() ([]byte, error) { return os.ReadFile(c.path(d, name)) }
}

func (c *crew) write(what string, d *folder, name string, ino *inode, flags int) *attempt {
	off, b := c.bytesFor(len(ino.data))
	if flags&os.O_APPEND != 0 {
		off = len(ino.data)
	}
	if off+len(b) > mostBytes {
		return nil
	}
	sync := c.rand.IntN(5) == 0
	a := &attempt{what: fmt.Sprintf("%s, %d at %d", what, len(b), off), do: func() error {
		f, err := os.OpenFile(c.path(d, name), flags, 0)
		if err != nil {
			return err
		}
		if flags&os.O_APPEND != 0 {
			_, err = f.Write(b)
		} else {
			_, err = f.WriteAt(b, int64(off))
		}
		if err == nil && sync {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	}}
	a.apply, a.settle = c.become(ino, func() []byte { return overwritten(ino.data, off, b) }, c.byName(d, name))
	return a
}

func (c *crew) truncate(what string, d *folder, name string, ino *inode) *attempt {
	n := c.rand.IntN(min(len(ino.data)+20_000, mostBytes) + 1)
	a := &attempt{what: fmt.Sprintf("%s to %d from %d", what, n, len(ino.data)), do: func() error { return os.Truncate(c.path(d, name), int64(n)) }}
	a.apply, a.settle = c.become(ino, func() []byte { return resized(ino.data, n) }, c.byName(d, name))
	return a
}

func (c *crew) openFile(what string, d *folder, name string, ino *inode) *attempt {
	if len(c.open) >= 5 {
		return nil
	}
	return &attempt{what: what, do: func() error {
		f, err := os.OpenFile(c.path(d, name), os.O_RDWR, 0)
		if err == nil {
			c.open = append(c.open, &handle{f, ino})
		}
		return err
	}}
}

// through runs do with an open file, if that is still open.
func (c *crew) through(h *handle, do func() error) error {
	if !slices.Contains(c.open, h) {
		return errDropped
	}
	return do()
}

func (c *crew) readHandle() *attempt {
	h := c.open[c.rand.IntN(len(c.open))]
	off, n := c.rand.IntN(len(h.ino.data)+1), 1+c.rand.IntN(100_000)
	return &attempt{what: "read an open file", do: func() error {
		return c.through(h, func() error { return readAt(h.f, off, n, h.ino.data) })
	}}
}

func (c *crew) writeHandle() *attempt {
	h := c.open[c.rand.IntN(len(c.open))]
	off, b := c.bytesFor(len(h.ino.data))
	if off+len(b) > mostBytes {
		return nil
	}
	a := &attempt{what: fmt.Sprintf("write %d at %d to an open file of %d", len(b), off, len(h.ino.data)), do: func() error {
		return c.through(h, func() error { _, err := h.f.WriteAt(b, int64(off)); return err })
	}}
	a.apply, a.settle = c.become(h.ino, func() []byte { return overwritten(h.ino.data, off, b) }, func() ([]byte, error) {
		for _, d := range c.dirs {
			for name, ino := range d.files {
				if ino == h.ino {
					return c.byName(d, name)()
				}
			}
		}
		if !slices.Contains(c.open, h) {
			return h.ino.data, nil // nobody can have it any more
		}
		return io.ReadAll(io.NewSectionReader(h.f, 0, mostBytes))
	})
	return a
}

// has reports whether the name is there.
func (c *crew) has(d *folder, name string) (bool, error) {
	_, err := os.Lstat(c.path(d, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (c *crew) unlink(what string, d *folder, name string) *attempt {
	apply := func() { delete(d.files, name) }
	return &attempt{what: what, do: func() error { return os.Remove(c.path(d, name)) }, apply: apply, settle: func() error {
		there, err := c.has(d, name)
		if err == nil && !there {
			apply()
		}
		return err
	}}
}

func (c *crew) create(d *folder, name string) *attempt {
	b := make([]byte, c.rand.IntN(30_000))
	for i := range b {
		b[i] = byte(c.rand.Uint32())
	}
	return &attempt{what: "create " + d.name + "/" + name, do: func() error { return os.WriteFile(c.path(d, name), b, 0o644) },
		apply: func() { d.files[name] = &inode{b} },
		settle: func() error {
			got, err := os.ReadFile(c.path(d, name))
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err == nil && !bytes.HasPrefix(b, got):
				return wrongf("%d bytes that were never written", len(got))
			case err == nil:
				d.files[name] = &inode{got}
			}
			return err
		}}
}

func (c *crew) link(what string, d *folder, name string, ino *inode) *attempt {
	to, as := c.anyDir(), c.newName()
	apply := func() { to.files[as] = ino }
	return &attempt{what: fmt.Sprintf("%s to %s/%s", what, to.name, as), apply: apply,
		do: func() error { return os.Link(c.path(d, name), c.path(to, as)) },
		settle: func() error {
			there, err := c.has(to, as)
			if there {
				apply()
			}
			return err
		}}
}

func (c *crew) rename(what string, d *folder, name string, ino *inode) *attempt {
	to, as := c.anyDir(), c.newName()
	if c.rand.IntN(3) == 0 { // over another one
		if _, other, there := c.anyFile(); there != nil {
			as = other
		}
	}
	if to.files[as] == ino {
		return nil // which does nothing at all
	}
	apply := func() {
		delete(d.files, name)
		to.files[as] = ino
	}
	return &attempt{what: fmt.Sprintf("%s to %s/%s", what, to.name, as), apply: apply,
		do: func() error { return os.Rename(c.path(d, name), c.path(to, as)) },
		settle: func() error {
			there, err := c.has(d, name)
			if err == nil && !there {
				apply()
			}
			return err
		}}
}

func (c *crew) renameDir(d *folder) *attempt {
	was, as := d.name, c.newName()
	return &attempt{what: "rename directory " + was + " to " + as,
		do: func() error {
			return os.Rename(c.path(d, ""), c.path(&folder{name: as}, ""))
		},
		apply: func() { d.name = as },
		settle: func() error {
			_, err := os.Lstat(c.path(&folder{name: as}, ""))
			if err == nil {
				d.name = as
			}
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}}
}
