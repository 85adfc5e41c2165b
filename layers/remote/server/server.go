package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Config says what is served, and how.
type Config struct {
	// Dir is what is served, and all there is. If it is empty it is all that the
	// process can reach, and relative paths begin in its working directory.
	Dir string

	// ReadOnly refuses whatever would change something.
	ReadOnly bool

	// Logger gets a line for each file that is opened and each change that is made
	// (level info), each request that failed (debug), and each that was refused
	// (warn). By default nothing is logged.
	Logger *slog.Logger
}

const (
	// maxPacket is the longest request, as with OpenSSH.
	maxPacket = 256 << 10

	// maxData is the most that one READ or WRITE moves: what OpenSSH's server moves.
	maxData = 255 << 10

	// flushAt is how much of the answers is held back, in bytes, while more requests
	// are there to be served.
	flushAt = 64 << 10

	// mostHandles bounds the handles of a client, whatever RLIMIT_NOFILE is.
	mostHandles = 4096

	// spareFiles is how many descriptors are left for everything but handles.
	spareFiles = 32
)

// server is one session. It is not safe for concurrent use: it has one goroutine.
type server struct {
	cfg  Config
	log  *slog.Logger
	tree tree

	out     []byte // answers that were not sent yet
	began   bool   // INIT was seen
	full    bool   // attrs@migratefs was asked for
	handles handles
	owners  owners
	walks   int    // handles that are one
	dirents []byte // for getdents(2)

	// What isExact last found out.
	exactKnown, exactIs bool
	exactDev            uint64
}

// errBadMessage: the request is not one, and the rest of the stream cannot be
// trusted to be any.
var errBadMessage = errors.New("malformed request")

// Serve serves the client that sends its requests to in and reads answers from out,
// until in ends, which is no error, or ctx does.
func Serve(ctx context.Context, in io.Reader, out io.Writer, cfg Config) error {
	s := &server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.tree.enter(cfg.Dir); err != nil {
		return err
	}
	defer s.tree.close()
	s.handles.most = handlesAllowed()
	defer s.handles.closeAll()
	r := bufio.NewReaderSize(in, 64<<10)
	var buf []byte
	for ctx.Err() == nil {
		if !isWhole(r) || len(s.out) >= flushAt {
			if err := s.flush(out); err != nil {
				return fmt.Errorf("sending: %w", err)
			}
		}
		q, err := readRequest(r, &buf)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = s.serve(q)
		}
		if err != nil {
			return errors.Join(err, s.flush(out))
		}
	}
	return ctx.Err()
}

// isWhole reports whether the next request is here: if it has to be waited for, the
// client may wait for answers.
func isWhole(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, _ := r.Peek(4)
	return uint64(r.Buffered()) >= 4+uint64(binary.BigEndian.Uint32(head))
}

func (s *server) flush(out io.Writer) error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := out.Write(s.out)
	if s.out = s.out[:0]; cap(s.out) > 4*maxPacket {
		s.out = nil
	}
	return err
}

// handlesAllowed is how many handles the limit on descriptors has room for.
func handlesAllowed() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < spareFiles+8 {
		return 8
	}
	return int(min(lim.Cur-spareFiles, mostHandles))
}

// readRequest reads one packet into *buf. io.EOF means that there is none.
func readRequest(r io.Reader, buf *[]byte) (*request, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = io.EOF // the client is gone
		}
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 5 || n > maxPacket {
		return nil, fmt.Errorf("%w: a packet that claims %d bytes", errBadMessage, n)
	}
	if uint32(cap(*buf)) < n {
		*buf = make([]byte, max(n, 4096))
	}
	b := (*buf)[:n]
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, io.EOF
	}
	return &request{typ: b[0], id: binary.BigEndian.Uint32(b[1:]), decoder: decode(b[5:])}, nil
}

// tree is what can be reached.
type tree struct {
	root     int // descriptor
	confined bool
	dir      string // the real path of the root
	given    string // the path that it was given by
	start    string // where relative paths begin, absolute
	proc     bool   // /proc/self/fd works
}

func (t *tree) enter(dir string) (err error) {
	t.dir, t.start = "/", "/"
	if dir == "" {
		if wd, err := os.Getwd(); err == nil {
			t.start = wd
		}
	} else {
		t.confined = true
		if t.given, err = filepath.Abs(dir); err != nil {
			return err
		}
		if t.dir, err = filepath.EvalSymlinks(t.given); err != nil {
			return fmt.Errorf("directory %q: %w", dir, err)
		}
		t.start = t.dir
	}
	if t.root, err = unix.Open(t.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("directory %q: %w", dir, err)
	}
	var st unix.Stat_t
	t.proc = unix.Stat(fmt.Sprintf("/proc/self/fd/%d", t.root), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	return nil
}

func (t *tree) close() { unix.Close(t.root) }

// timeOf is a time of SFTP's 32 bits.
func timeOf(sec uint32) unix.Timespec { return unix.Timespec{Sec: int64(sec)} }

// wire is a time in SFTP's 32 bits: what does not fit wraps, as with OpenSSH.
func wireTime(t layers.Time) uint32 { return uint32(t.Sec) }
