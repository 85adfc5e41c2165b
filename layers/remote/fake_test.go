package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// fake is an SFTP server in memory, which a test can make lie. It serves /src.
type fake struct {
	mu       sync.Mutex
	files    map[string]*fakeFile // by absolute path
	fsid     uint64
	exts     map[string]string
	handles  map[fakeHandle]*fakeOpen
	slots    bool // handles are OpenSSH's
	serving  int  // sessions now
	opened   int
	most     int // handles that were open at once
	sessions int
	limit    uint64 // handles, by limits@openssh.com

	// lie, if not nil, sees each request before it is answered. It returns what
	// to send instead of the answer; ok is false for the honest one.
	lie func(q *query) (packets []byte, ok bool)

	// refuse, if not nil, is what dialing returns.
	refuse error
}

// A fakeHandle is a handle of one session.
type fakeHandle struct {
	session int
	name    string
}

// fakeOpen is what a handle leads to.
type fakeOpen struct {
	*fakeFile
	names []string // of a directory: paths not listed yet
}

type fakeFile struct {
	mode  uint32
	mtime uint32
	uid   uint32
	gid   uint32
	data  []byte
	size  int64 // if not 0, what is said of the size
}

type query struct {
	session int
	typ     byte
	id      uint32
	name    string // path, handle or extension
	rest    decoder
}

func newFake() *fake {
	return &fake{
		fsid:    7,
		exts:    map[string]string{extStatvfs: "2", extLimits: "1"},
		handles: make(map[fakeHandle]*fakeOpen),
		files: map[string]*fakeFile{
			"/src":   {mode: unix.S_IFDIR | 0o755, mtime: 1000},
			"/src/f": {mode: unix.S_IFREG | 0o644, mtime: 1000, data: random(9, 500_000)},
			"/src/g": {mode: unix.S_IFREG | 0o644, mtime: 1000, data: random(10, 500_000)},
		},
	}
}

// set changes the server while it serves.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

type pipeTransport struct {
	io.Reader
	io.Writer
	close func()
}

func (p *pipeTransport) Close() error { p.close(); return nil }

func (f *fake) dial(context.Context) (transport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return nil, f.refuse
	}
	f.sessions++
	f.serving++
	session := f.sessions
	fromClient, toServer := io.Pipe()
	fromServer, toClient := io.Pipe()
	over := make(chan struct{})
	go func() {
		defer close(over)
		f.serve(session, fromClient, toClient)
	}()
	return &pipeTransport{fromServer, toServer, func() {
		fromClient.Close()
		toClient.Close()
		fromServer.Close()
		toServer.Close()
		<-over
	}}, nil
}

func (f *fake) serve(session int, in *io.PipeReader, out *io.PipeWriter) {
	defer out.Close()
	defer in.Close()
	defer f.set(func() {
		f.serving--
		for h := range f.handles {
			if h.session == session {
				delete(f.handles, h)
			}
		}
	})
	var head [5]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, in, 4); err != nil {
		return
	}
	if f.send(out, session, &query{session: session, typ: fxpInit}) != nil {
		return
	}
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:])-1)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		q := &query{session: session, typ: head[4], rest: decode(body)}
		q.id = q.rest.U32()
		q.name = string(q.rest.Bytes())
		if f.send(out, session, q) != nil {
			return
		}
	}
}

func (f *fake) send(out io.Writer, session int, q *query) error {
	f.mu.Lock()
	lie := f.lie
	f.mu.Unlock()
	if lie != nil {
		if b, ok := lie(q); ok {
			_, err := out.Write(b)
			return err
		}
	}
	_, err := out.Write(f.honest(q))
	return err
}

func packet(typ byte, id uint32, body []byte) []byte {
	r := request{typ: typ, body: body}
	return r.appendTo(nil, id)
}

func u32(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.BigEndian.AppendUint32(b, x)
	}
	return b
}

func u64(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.BigEndian.AppendUint64(b, x)
	}
	return b
}

func cat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func status(id, code uint32) []byte {
	return packet(fxpStatus, id, cat(u32(code), str(nil, "as the test wants it"), str(nil, "")))
}

func (n *fakeFile) attrs() []byte {
	size := int64(len(n.data))
	if n.size != 0 {
		size = n.size
	}
	return cat(u32(attrSize|attrOwner|attrMode|attrTimes), u64(uint64(size)), u32(n.uid, n.gid, n.mode, n.mtime, n.mtime))
}

// honest is the right answer to q.
func (f *fake) honest(q *query) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	node := f.files[q.name]
	switch q.typ {
	case fxpInit:
		var b []byte
		for k, v := range f.exts {
			b = str(str(b, k), v)
		}
		return cat(u32(uint32(len(b)+5)), []byte{fxpVersion}, u32(3), b)
	case fxpLstat, fxpStat, fxpOpen, fxpOpendir:
		if node == nil {
			return status(q.id, fxNoSuchFile)
		}
		if q.typ == fxpLstat || q.typ == fxpStat {
			return packet(fxpAttrs, q.id, node.attrs())
		}
		if q.typ == fxpOpendir && node.mode&unix.S_IFMT != unix.S_IFDIR {
			return status(q.id, fxNoSuchFile)
		}
		h := f.newHandle(q.session)
		open := &fakeOpen{fakeFile: &fakeFile{mode: node.mode, mtime: node.mtime, uid: node.uid, gid: node.gid, data: node.data, size: node.size}}
		if q.typ == fxpOpendir {
			for name := range f.files {
				if path.Dir(name) == q.name {
					open.names = append(open.names, name)
				}
			}
			slices.Sort(open.names)
		}
		f.handles[h] = open
		f.most = max(f.most, len(f.handles))
		return packet(fxpHandle, q.id, str(nil, h.name))
	case fxpRealpath:
		return packet(fxpName, q.id, cat(u32(1), str(str(nil, q.name), q.name), u32(0)))
	case fxpExtended:
		switch q.name {
		case extLimits:
			return packet(fxpExtendedReply, q.id, u64(256<<10, 64<<10, 64<<10, f.limit))
		case extStatvfs:
			return packet(fxpExtendedReply, q.id, u64(4096, 4096, 1000, 500, 500, 10, 5, 5, f.fsid, 0, 255))
		}
	}
	return f.onHandle(q)
}

// newHandle returns one that is not in use. The caller holds mu.
func (f *fake) newHandle(session int) fakeHandle {
	if !f.slots {
		f.opened++
		return fakeHandle{session, fmt.Sprintf("h%d", f.opened)}
	}
	for i := uint32(0); ; i++ {
		h := fakeHandle{session, string(u32(i))}
		if f.handles[h] == nil {
			return h
		}
	}
}

// onHandle answers requests about handles. The caller holds mu.
func (f *fake) onHandle(q *query) []byte {
	h := fakeHandle{q.session, q.name}
	node := f.handles[h]
	if node == nil {
		return status(q.id, fxFailure)
	}
	switch q.typ {
	case fxpClose:
		delete(f.handles, h)
		return status(q.id, fxOK)
	case fxpFstat:
		return packet(fxpAttrs, q.id, node.attrs())
	case fxpRead:
		off, n := q.rest.U64(), uint64(q.rest.U32())
		if off >= uint64(len(node.data)) {
			return status(q.id, fxEOF)
		}
		return packet(fxpData, q.id, str(nil, string(node.data[off:min(off+n, uint64(len(node.data)))])))
	case fxpReaddir:
		if len(node.names) == 0 {
			return status(q.id, fxEOF)
		}
		now := node.names[:min(100, len(node.names))]
		node.names = node.names[len(now):]
		var b []byte
		for _, name := range now {
			b = cat(b, listed(path.Base(name), "", f.files[name]))
		}
		return packet(fxpName, q.id, cat(u32(uint32(len(now))), b))
	}
	return status(q.id, fxUnsupported)
}

func listed(name, longname string, n *fakeFile) []byte {
	return cat(str(str(nil, name), longname), n.attrs())
}

// config is a Config for f with everything fast.
func (f *fake) config() Config {
	return Config{
		Target: Target{Host: "fake", Path: "/src"}, dial: f.dial, Timeout: 20 * time.Second,
		pace: pace{first: time.Millisecond, most: 2 * time.Millisecond, refusal: time.Millisecond, healthy: time.Hour},
	}
}

// open makes a layer of f and sees, at the end of the test, that nothing of it
// is left.
func (f *fake) open(t *testing.T, change ...func(*Config)) *Layer {
	t.Helper()
	before := runtime.NumGoroutine()
	cfg := f.config()
	for _, c := range change {
		c(&cfg)
	}
	l, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		for range 6000 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 64<<10)
		t.Errorf("%d goroutines before, %d after Close:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
	})
	return l
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// content reads the first n bytes of p.
func content(ctx context.Context, l *Layer, p layers.Path, n int) ([]byte, error) {
	f, err := l.Open(ctx, p, nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	n, err = f.ReadAt(ctx, b, 0)
	if errors.Is(err, io.EOF) && err != io.EOF {
		return nil, fmt.Errorf("an end of file in disguise: %w", err)
	}
	return b[:n], err
}
