package lazypages

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/sys"
)

const (
	// Socket is what CRIU connects to, in its work directory (criu/uffd.c).
	Socket = "lazy-pages.socket"

	// restoreFinished is what CRIU sends when all processes go on: LAZY_PAGES_RESTORE_FINISHED.
	restoreFinished = 0x52535446

	// unit is what is fetched for a thread that waits for a page, in bytes: about what a
	// network that is worth it carries in a millisecond.
	unit = 128 << 10
	// chunk is what the background fetches at a time. Who waits for a page waits for the rest of it.
	chunk = 512 << 10
	// patience is how long it is until what has failed is tried again.
	patience = time.Second
	// readers is how many threads read images for those who wait.
	readers = 64
)

var pageSize = uint64(os.Getpagesize())

// Server gives processes their memory.
type Server struct {
	dir      string // the images
	flags    int    // to open them with
	log      *slog.Logger
	total    int64
	memories map[uint32]*memory // immutable, by task
	order    []*memory          // immutable, with pages in them

	ctx     context.Context // of Serve
	reading chan struct{}   // a slot for each reader
	closing sync.WaitGroup  // of descriptors

	mu       sync.Mutex
	idle     *sync.Cond // nobody waits any more
	waiting  int        // for pages
	restored bool       // all processes go on
	made     int        // how many spaces there ever were
	files    map[string]*os.File
	first    map[string]version // of each image, when the restore began; immutable
	why      string             // what went wrong last; "" if it goes on
	said     time.Time
}

// State is how far it is.
type State struct {
	Total    int64  // bytes that may come later
	Missing  int64  // of these; what forked processes both miss counts once
	Restored bool   // the processes go on
	Error    string // why nothing comes at present; "" if something does
}

// New makes a server for the memory of these tasks of the images in dir. With direct they are
// read past the page cache, from a FUSE mount: who waits for its readahead cannot be killed.
// As the images are now they have to stay.
func New(dir string, direct bool, tasks []*criu.LazyMemory, log *slog.Logger) (*Server, error) {
	flags := os.O_RDONLY
	if direct {
		flags |= unix.O_DIRECT
	}
	s := &Server{
		dir: dir, flags: flags, log: log, memories: make(map[uint32]*memory), files: make(map[string]*os.File),
		first: make(map[string]version), reading: make(chan struct{}, readers),
	}
	s.idle = sync.NewCond(&s.mu)
	for _, t := range tasks {
		m := &memory{LazyMemory: t}
		s.memories[t.PID] = m
		if len(t.Pages) > 0 {
			s.order = append(s.order, m)
			v, err := versionOf(unix.AT_FDCWD, filepath.Join(dir, t.File), 0)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", t.File, err)
			}
			s.first[t.File] = v
		}
		s.total += t.Bytes()
	}
	return s, nil
}

// Serve takes the processes that CRIU hands over at l, and serves them until nothing is
// missing or ctx ends. An error is one after which CRIU cannot restore; all later ones are waited out.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	context.AfterFunc(ctx, func() { _ = l.Close() })
	conn, err := l.AcceptUnix()
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := s.receive(conn); err != nil {
		return errors.Join(err, ctx.Err())
	}
	s.mu.Lock()
	s.restored = true
	s.mu.Unlock()
	s.fill()
	return ctx.Err()
}

// receive takes what CRIU says until all processes go on: for each the number of the task,
// followed by a byte with the descriptor unless that is negative, of a zombie.
func (s *Server) receive(conn *net.UnixConn) error {
	for {
		var word [4]byte
		if _, err := io.ReadFull(conn, word[:]); err != nil {
			return fmt.Errorf("criu ended before the processes went on: %w", err)
		}
		pid := int32(binary.NativeEndian.Uint32(word[:]))
		switch {
		case pid == restoreFinished:
			return nil
		case pid <= 0:
			continue
		}
		fd, err := receiveFd(conn)
		if err != nil {
			return err
		}
		s.mu.Lock()
		m := s.memories[uint32(pid)]
		known := m != nil && !m.handed
		if known {
			m.handed = true
		}
		s.mu.Unlock()
		if !known {
			_ = unix.Close(fd)
			return fmt.Errorf("criu hands over the memory of process %d, which is none of the checkpoint or was handed over before", pid)
		}
		s.add(newSpace(s, m, fd, slices.Clone(missing(m.Pages))))
	}
}

func receiveFd(conn *net.UnixConn) (fd int, err error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return -1, fmt.Errorf("criu hands over no memory: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("criu hands over no memory: %d messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("criu hands over no memory: %d descriptors, %v", len(fds), err)
	}
	return fds[0], nil
}

// add serves a space from now on.
func (s *Server) add(p *space) {
	s.mu.Lock()
	p.of.spaces = append(p.of.spaces, p)
	s.made++
	s.mu.Unlock()
	go p.serve()
}

// fill brings what nobody has asked for, and returns when nothing is missing.
func (s *Server) fill() {
	for done := false; !done && !s.over(); done = s.finish() {
		for _, m := range s.order {
			s.fillOne(m)
		}
	}
	s.closing.Wait()
}

func (s *Server) fillOne(m *memory) {
	for !s.over() {
		r, ok := s.nextOf(m)
		if !ok {
			return
		}
		s.waitIdle()
		data, err := s.read(m, r)
		if err != nil {
			return
		}
		for _, p := range s.spacesOf(m) { // those of forked processes mostly miss the same
			for !s.over() && !p.settled(p.put(r, data)) {
			}
		}
		s.forget(m, r)
	}
}

// finish lets go of all spaces, and reports whether none is left. One that a fork makes is in
// the list before its parent's lock is free.
func (s *Server) finish() bool {
	s.mu.Lock()
	made := s.made
	s.mu.Unlock()
	for _, m := range s.order {
		if !s.sweep(m) {
			return false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made == made
}

// sweep lets go of the spaces of m that are of no use any more, and reports whether none is left.
func (s *Server) sweep(m *memory) bool {
	gone := make(map[*space]bool)
	for _, p := range s.spacesOf(m) {
		if p.finish() {
			gone[p] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m.spaces = slices.DeleteFunc(m.spaces, func(p *space) bool { return gone[p] })
	return len(m.spaces) == 0
}

// nextOf is what comes next of a memory, in any of its spaces.
func (s *Server) nextOf(m *memory) (criu.LazyRange, bool) {
	for _, p := range s.spacesOf(m) {
		if r, ok := p.next(); ok {
			return r, true
		}
	}
	return criu.LazyRange{}, false
}

func (s *Server) spacesOf(m *memory) []*space {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(m.spaces)
}

// read reads a part of an image, for as long as that takes. It fails only when it is over.
func (s *Server) read(m *memory, r criu.LazyRange) ([]byte, error) {
	select {
	case s.reading <- struct{}{}:
		defer func() { <-s.reading }()
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	data := make([]byte, r.End-r.Start)
	for {
		err := s.readOnce(m.File, data, r.Off)
		if err == nil {
			s.better()
			return data, nil
		}
		s.complain("memory cannot be read", err)
		select {
		case <-time.After(patience):
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
}

func (s *Server) readOnce(name string, data []byte, off int64) error {
	f, err := s.open(name)
	if err != nil {
		return err
	}
	if _, err = f.ReadAt(data, off); err == nil {
		err = s.check(f, name, 0)
	}
	if err == nil {
		return nil
	}
	// Another time it may be another mount.
	s.mu.Lock()
	if s.files[name] == f {
		delete(s.files, name) // closed by the garbage collector: others may be reading
	}
	s.mu.Unlock()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%q: it has become shorter", name)
	}
	return err
}

func (s *Server) open(name string) (*os.File, error) {
	s.mu.Lock()
	f := s.files[name]
	s.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), s.flags, 0)
	if err != nil {
		return nil, err
	}
	if err := s.check(f, name, unix.AT_STATX_FORCE_SYNC); err != nil {
		f.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[name] == nil {
		s.files[name] = f
	}
	return s.files[name], nil
}

// version is what changes when an image is written anew.
type version struct {
	size  uint64
	mtime unix.StatxTimestamp
}

func versionOf(dir int, path string, flags int) (version, error) {
	var st unix.Statx_t
	err := sys.Retry(func() error { return unix.Statx(dir, path, flags, unix.STATX_SIZE|unix.STATX_MTIME, &st) })
	return version{st.Size, st.Mtime}, err
}

// check returns an error if f is not what that image was when the restore began. It comes
// after each read: what was read before it is of the image as it was.
func (s *Server) check(f *os.File, name string, flags int) error {
	v, err := versionOf(int(f.Fd()), "", unix.AT_EMPTY_PATH|flags)
	if err == nil && v != s.first[name] {
		err = fmt.Errorf("%q is not what it was when the process was restored", name)
	}
	return err
}

// forget has the kernel keep no second copy of what was given to processes.
func (s *Server) forget(m *memory, r criu.LazyRange) {
	if f, err := s.open(m.File); err == nil {
		_ = unix.Fadvise(int(f.Fd()), r.Off, int64(r.End-r.Start), unix.FADV_DONTNEED)
	}
}

// hurry counts those who wait for a page to be read.
func (s *Server) hurry(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting += n; s.waiting == 0 {
		s.idle.Broadcast()
	}
}

// waitIdle keeps the background from the link while somebody waits.
func (s *Server) waitIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.waiting > 0 {
		s.idle.Wait()
	}
}

func (s *Server) over() bool { return s.ctx.Err() != nil }

// complain says what keeps pages from coming, now and then.
func (s *Server) complain(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why = fmt.Sprintf("%s: %v", what, err)
	if time.Since(s.said) > time.Minute {
		s.said = time.Now()
		s.log.Error(what+": who touches what is missing waits; it is tried again", "cause", err)
	}
}

// better says that pages come.
func (s *Server) better() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		s.why, s.said = "", time.Time{}
		s.log.Info("memory comes again")
	}
}

// State says how far it is.
func (s *Server) State() State {
	s.mu.Lock()
	st := State{Total: s.total, Restored: s.restored, Error: s.why}
	var spaces [][]*space
	for _, m := range s.order {
		spaces = append(spaces, slices.Clone(m.spaces))
		if !m.handed {
			st.Missing += m.Bytes()
		}
	}
	s.mu.Unlock()
	for _, all := range spaces {
		most := int64(0)
		for _, p := range all {
			most = max(most, p.bytesLeft())
		}
		st.Missing += most
	}
	return st
}
