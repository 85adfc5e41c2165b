package remote

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

var (
	_ layers.BulkReader = (*Layer)(nil)
	_ layers.BulkLister = (*Layer)(nil)
)

const (
	// manyFiles and manyBytes bound one burst of ReadMany, and manyBytes one
	// of its files, too.
	manyFiles = 256
	manyBytes = 4 << 20

	// fewFiles and fewBytes do where it stands before demand.
	fewFiles = 32
	fewBytes = 256 << 10
)

// ReadMany takes one exchange for up to 256 files of 4 MiB together where handles
// can be predicted, else two: one that opens all of them and sees that each path leads
// to what is wanted, and one that reads. More go in several bursts. A file larger
// than 4 MiB is EFBIG.
func (l *Layer) ReadMany(ctx context.Context, files []layers.Wanted) ([]layers.Content, error) {
	m := &readMany{l: l, files: files, out: make([]layers.Content, len(files)), done: make([]bool, len(files))}
	for i := range files {
		if err := m.refuse(&files[i]); err != nil {
			m.finish(i, layers.Content{Err: l.fail("open", files[i].Path, err)})
		}
	}
	var many operation = m.on
	if layers.IsBackground(ctx) {
		many = l.narrowly(many)
	}
	if err := l.exchangeOn(ctx, l.forMany, many); err != nil {
		return nil, l.fail("read", layers.Root, err)
	}
	for _, i := range m.alone {
		m.finish(i, l.readAlone(ctx, &files[i]))
	}
	return m.out, ctx.Err()
}

// forMany picks the connection for ReadMany and ReadDirs.
func (l *Layer) forMany(ctx context.Context, old *conn) (*conn, error) {
	if layers.IsBackground(ctx) {
		return l.background(ctx, old)
	}
	if c := l.swift(); c != nil && c != old {
		return c, nil
	}
	return l.session(ctx, old)
}

// readMany is one call of ReadMany.
type readMany struct {
	l     *Layer
	files []layers.Wanted
	out   []layers.Content
	done  []bool
	alone []int // to be read one by one: they came in pieces
	gated bool  // an OPEN did not return
}

func (m *readMany) refuse(w *layers.Wanted) error {
	switch {
	case w.Attr == nil || !w.Attr.Has(layers.KnownSize):
		return unix.EINVAL
	case !w.Attr.IsRegular():
		return layers.ErrNotRegular
	case w.Attr.Size > manyBytes:
		return unix.EFBIG
	}
	return m.l.check(w.Path)
}

func (m *readMany) finish(i int, c layers.Content) {
	m.out[i], m.done[i] = c, true
}

// failed notes err of file i, unless it is about all of them: then it is returned.
func (m *readMany) failed(op string, i int, err error) error {
	if concernsAll(err) {
		return err
	}
	if errors.Is(err, errShort) {
		m.alone = append(m.alone, i)
		m.done[i] = true
		return nil
	}
	m.finish(i, layers.Content{Err: m.l.fail(op, m.files[i].Path, errnoOf(err))})
	return nil
}

// on reads on c what is not done.
func (m *readMany) on(ctx context.Context, c *conn) (err error) {
	if m.gated {
		if err := m.look(ctx, c); err != nil {
			return err
		}
	}
	if c.predicts() {
		err = m.inOne(ctx, c)
	} else {
		err = m.inTwo(ctx, c)
	}
	m.gated = m.gated || errors.Is(err, errStalled)
	return err
}

// look takes out the files that are not what is wanted: one of them may be a FIFO
// by now, and is not opened again.
func (m *readMany) look(ctx context.Context, c *conn) error {
	for _, g := range m.groups(manyFiles, 1<<62) {
		paths, attrs, errs := make([]layers.Path, len(g)), make([]layers.Attr, len(g)), make([]error, len(g))
		for k, i := range g {
			paths[k] = m.files[i].Path
		}
		s := m.l.newStatMany(paths, attrs, errs)
		replies, err := c.do(ctx, s.ask(c)...)
		if err == nil {
			err = s.read(ctx, c, replies)
		}
		if err != nil {
			return err
		}
		for k, i := range g {
			if errs[k] == nil && !same(&attrs[k], m.files[i].Attr) {
				errs[k] = layers.ErrStale
			}
			if errs[k] != nil {
				m.finish(i, layers.Content{Err: m.l.fail("open", paths[k], errs[k])})
			}
		}
	}
	return nil
}

// groups divides what is not done.
func (m *readMany) groups(files int, bytes int64) (all [][]int) {
	var g []int
	size := int64(0)
	for i := range m.files {
		if m.done[i] {
			continue
		}
		n := m.files[i].Attr.Size
		if len(g) > 0 && (len(g) == files || size+n > bytes) {
			all, g, size = append(all, g), nil, 0
		}
		g, size = append(g, i), size+n
	}
	if len(g) > 0 {
		all = append(all, g)
	}
	return all
}

// places is what proves, behind the OPENs of a burst, where their directories are.
type places struct {
	dirs []layers.Path
	at   map[layers.Path]int
}

func (m *readMany) places(group []int) *places {
	p := &places{at: make(map[layers.Path]int)}
	for _, i := range group {
		dir, _ := m.files[i].Path.Split()
		if _, ok := p.at[dir]; !ok {
			p.at[dir] = len(p.dirs)
			p.dirs = append(p.dirs, dir)
		}
	}
	return p
}

// ask returns REALPATH of each directory and askRoot.
func (p *places) ask(l *Layer, c *conn) (reqs []request) {
	for _, dir := range p.dirs {
		reqs = append(reqs, askPath(fxpRealpath, l.path(dir)))
	}
	return append(reqs, l.askRoot(c))
}

// vouch is Layer.vouchFor, with the answers to ask.
func (p *places) vouch(l *Layer, lstat *reply, replies []reply, w *layers.Wanted) (layers.Attr, error) {
	dir, _ := w.Path.Split()
	return l.vouchFor(lstat, &replies[p.at[dir]], l.path(dir), w.Attr)
}

// inOne reads with a block for each file.
func (m *readMany) inOne(ctx context.Context, c *conn) error {
	groups := m.groups(manyFiles, manyBytes)
	var asked []time.Time
	var where []*places
	return pipeline(ctx, c, len(groups), func(k int) (reqs []request) {
		for _, i := range groups[k] {
			full := m.l.path(m.files[i].Path)
			reqs = append(reqs, askBlock(c, full, 0, int(m.files[i].Attr.Size))...)
			reqs = append(reqs, askPath(fxpLstat, full))
		}
		p := m.places(groups[k])
		where, asked = append(where[:k], p), append(asked[:k], time.Now())
		return append(reqs, p.ask(m.l, c)...)
	}, func(k int, replies []reply) error {
		return m.readBlocks(c, groups[k], where[k], asked[k], replies)
	})
}

func (m *readMany) readBlocks(c *conn, group []int, p *places, asked time.Time, replies []reply) error {
	proof := replies[len(replies)-len(p.dirs)-1:]
	if err := m.l.sameRoot(&proof[len(p.dirs)]); err != nil {
		return err
	}
	for _, i := range group {
		w := &m.files[i]
		n := int(w.Attr.Size)
		block := blockLen(c, n)
		mine, lstat := replies[:block], &replies[block]
		replies = replies[block+1:]
		a, err := p.vouch(m.l, lstat, proof, w)
		var parts [][]byte
		if err == nil {
			parts, err = m.l.readBlock(c, mine, &a, n)
		}
		if err == nil {
			m.take(i, parts, wasSettled(w.Attr, &a, asked))
			continue
		}
		if isStatus(err, fxNoSuchFile) {
			err = layers.ErrStale
		}
		if err := m.failed("read", i, err); err != nil {
			return err
		}
	}
	return nil
}

func (m *readMany) take(i int, parts [][]byte, settled bool) {
	n := int(m.files[i].Attr.Size)
	m.l.count.bytesRead.Add(int64(n))
	m.finish(i, layers.Content{Data: joined(parts, n), Settled: settled})
}

// inTwo opens a group of files in one burst, and reads them in the next.
func (m *readMany) inTwo(ctx context.Context, c *conn) error {
	files, bytes := c.opens.size, int64(manyBytes)
	if isShared(ctx, c) {
		files, bytes = min(files, fewFiles), fewBytes
	}
	for _, g := range m.groups(files, bytes) {
		if err := m.openAndRead(ctx, c, g); err != nil {
			return err
		}
	}
	return nil
}

func (m *readMany) openAndRead(ctx context.Context, c *conn, group []int) error {
	if err := c.opens.take(ctx, c.dead, len(group)); err != nil {
		return err
	}
	defer c.opens.give(len(group))
	p := m.places(group)
	var reqs []request
	for _, i := range group {
		full := m.l.path(m.files[i].Path)
		reqs = append(reqs, askOpen(full), askPath(fxpLstat, full))
	}
	replies, err := c.do(ctx, append(reqs, p.ask(m.l, c)...)...)
	if err != nil {
		return err
	}
	opened, err := m.readOpens(c, group, p, replies)
	if err != nil || len(opened) == 0 {
		for _, o := range opened {
			c.post(askHandle(fxpClose, o.handle))
		}
		return err
	}
	reqs = nil
	for _, o := range opened {
		reqs = append(reqs, o.ask(c)...)
	}
	asked := time.Now()
	if replies, err = c.do(ctx, reqs...); err != nil {
		for _, o := range opened {
			c.post(askHandle(fxpClose, o.handle)) // sent or not, once more does no harm
		}
		return err
	}
	for _, o := range opened {
		var parts [][]byte
		n := o.reads(c)
		if err = m.l.isVersion(&replies[n], &o.attr); err == nil {
			parts, err = takeParts(c, replies[:n], int(o.attr.Size))
		}
		replies = replies[n+2:]
		if err == nil {
			m.take(o.i, parts, isSettled(&o.attr, asked))
		} else if err := m.failed("read", o.i, err); err != nil {
			return err
		}
	}
	return nil
}

// opened is a file of ReadMany that has a handle.
type opened struct {
	i      int
	handle string
	attr   layers.Attr
}

// reads is how many READs it takes.
func (o *opened) reads(c *conn) int { return (int(o.attr.Size) + c.caps.chunk - 1) / c.caps.chunk }

// ask returns all READs, FSTAT and CLOSE.
func (o *opened) ask(c *conn) (reqs []request) {
	size := int(o.attr.Size)
	for at := 0; at < size; at += c.caps.chunk {
		reqs = append(reqs, askRead(o.handle, int64(at), min(c.caps.chunk, size-at)))
	}
	return append(reqs, askHandle(fxpFstat, o.handle), askHandle(fxpClose, o.handle))
}

// readOpens returns the files that were opened and are what is wanted. The others
// are closed, and done. The error is about all.
func (m *readMany) readOpens(c *conn, group []int, p *places, replies []reply) (all []opened, err error) {
	proof := replies[2*len(group):]
	err = m.l.sameRoot(&proof[len(p.dirs)])
	for k, i := range group {
		handle, openErr := replies[2*k].handle()
		if openErr == nil && err != nil {
			all = append(all, opened{i: i, handle: handle})
			continue
		}
		a, bad := p.vouch(m.l, &replies[2*k+1], proof, &m.files[i])
		if bad == nil {
			if bad = openErr; isStatus(bad, fxNoSuchFile) {
				bad = layers.ErrStale
			}
		}
		if bad == nil {
			all = append(all, opened{i, handle, a})
			continue
		}
		if openErr == nil {
			c.post(askHandle(fxpClose, handle))
		}
		if err == nil {
			err = m.failed("open", i, bad)
		}
	}
	return all, err
}

// readAlone reads one file in the ordinary way.
func (l *Layer) readAlone(ctx context.Context, w *layers.Wanted) (c layers.Content) {
	f, err := l.Open(ctx, w.Path, w.Attr)
	if err != nil {
		return layers.Content{Err: err}
	}
	defer f.Close()
	c.Settled = f.(*File).Settled()
	c.Data = make([]byte, w.Attr.Size)
	if n, err := f.ReadAt(ctx, c.Data, 0); err != nil && (err != io.EOF || n < len(c.Data)) {
		return layers.Content{Err: err}
	}
	return c
}
