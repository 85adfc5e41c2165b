package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

var (
	_ layers.Layer             = (*Layer)(nil)
	_ layers.BulkStater        = (*Layer)(nil)
	_ layers.Offliner          = (*Layer)(nil)
	_ layers.File              = (*File)(nil)
	_ dialer                   = (*ssh)(nil).dial
	_ interface{ ID() string } = (*Layer)(nil)
)

// errClosed: the layer or file was closed by its owner.
var errClosed = fmt.Errorf("closed: %w", unix.EBADF)

// Layer is a directory on another host. It is safe for concurrent use.
type Layer struct {
	cfg   Config // immutable
	name  string // immutable; the target, for messages
	id    string // immutable after New
	root  rootID // immutable after New
	ours  ours   // immutable after New; what the server had then
	ids   *idmap // nil: owners go by number
	dial  dialer // immutable
	count counters
	trace tracing

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	done chan struct{} // closed when the connector has ended

	unpark  chan struct{}  // Reconnect wakes the connector
	want    chan struct{}  // a lane was asked for
	narrow  chan struct{}  // holds a token for each background operation on the main connection
	watched sync.WaitGroup // who watches lanes
	tried   string         // the connector's: the master that the last attempt found
	handles handlePool
	carried carried
	erratic atomic.Bool // blocks have failed: there are no more, see serial.go

	mu       sync.Mutex
	cur      *conn         // nil while there is none
	changed  chan struct{} // closed and replaced at each change of the fields here
	why      error         // why cur is nil; else ErrReplaced if the root is another one
	lostAt   time.Time     // when cur became nil
	parked   bool
	isClosed bool
	lanes    lanes
}

// Stats are totals since New.
type Stats struct {
	Requests  int64 // packets sent
	Bursts    int64 // groups of packets sent and waited for together: at most so many round trips
	BytesRead int64 // of file content, as it was handed out
	WireIn    int64 // bytes from the server, before ssh's own overhead
	Connects  int64 // logins that led to a working channel
	Predicted int64 // files and directories that were opened and read in one exchange

	Connections int // how many there are now
}

type counters struct {
	requests, bursts, bytesRead, wireIn, connects, predicted atomic.Int64
}

// New connects to the source and looks at the root, which must be a directory.
// It tries once; every later loss of the connection is mended by itself. Errors
// wrap layers.ErrDenied if login or host key were refused, layers.ErrOffline if
// the host could not be reached, ENOENT, ENOTDIR or EACCES for the root, and
// are one line that says what to do.
func New(ctx context.Context, cfg Config) (*Layer, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	l := &Layer{
		cfg: cfg, name: cfg.Target.printable(), dial: cfg.dial,
		done:    make(chan struct{}),
		unpark:  make(chan struct{}, 1),
		want:    make(chan struct{}, 1),
		narrow:  make(chan struct{}, 2),
		changed: make(chan struct{}),
	}
	l.trace.source = l.name
	if cfg.IDMap {
		l.ids = newIDMap(cfg.UID, cfg.GID)
	}
	l.lanes = newLanes(cfg.Connections, cfg.pace.lane)
	l.ctx, l.stop = context.WithCancel(context.Background())
	var s *ssh
	if l.dial == nil {
		var err error
		if s, err = newSSH(&l.cfg); err != nil {
			return nil, err
		}
		l.dial = s.dial
		l.cfg.master = func() string { _, id := s.master(); return id }
	}
	first := make(chan error, 1)
	go l.keepConnected(ctx, s, first)
	if err := <-first; err != nil {
		l.Close()
		return nil, fmt.Errorf("remote layer %s: %w", l.name, err)
	}
	return l, nil
}

// identity makes the ID of what ssh connects to and of the root's real path. A
// server of a test has no ssh.
func (l *Layer) identity(ctx context.Context, s *ssh) (string, error) {
	t := l.cfg.Target
	host, port, login := t.Host, fmt.Sprint(t.Port), t.User
	if s != nil {
		set, err := s.settings(ctx)
		if err != nil {
			return "", fmt.Errorf("asking ssh what it makes of its configuration (ssh -G): %w", err)
		}
		host, port, login = set["hostname"], set["port"], set["user"]
		if alias := set["hostkeyalias"]; alias != "" && alias != "none" {
			host = alias
		}
	}
	return fmt.Sprintf("sftp:%q@%q:%s:%q", login, strings.ToLower(host), port, l.root.path), nil
}

// ID returns a string made of host (HostKeyAlias, else HostName, as ssh -G says),
// port, login and real path of the root.
func (l *Layer) ID() string { return l.id }

// Stats returns the totals so far.
func (l *Layer) Stats() Stats {
	return Stats{
		Requests:  l.count.requests.Load(),
		Bursts:    l.count.bursts.Load(),
		BytesRead: l.count.bytesRead.Load(),
		WireIn:    l.count.wireIn.Load(),
		Connects:  l.count.connects.Load(),
		Predicted: l.count.predicted.Load(),

		Connections: l.connections(),
	}
}

// Close ends the connection and waits until nothing of it is left.
func (l *Layer) Close() error {
	l.stop()
	<-l.done
	return nil
}

// path returns the absolute path of p on the source.
func (l *Layer) path(p layers.Path) string {
	switch {
	case p == layers.Root:
		return l.root.path
	case l.root.path == "/":
		return "/" + string(p)
	}
	return l.root.path + "/" + string(p)
}

// fail wraps err, if it is not nil, with operation and path.
func (l *Layer) fail(op string, p layers.Path, err error) error {
	if err == nil {
		return nil
	}
	return &layers.PathError{Op: op, Layer: l.name, Path: p, Err: err}
}

// check refuses paths that are not clean, or are longer than the server could
// take. It never gets that far unless a caller broke its own contract.
func (l *Layer) check(p layers.Path) error {
	if !p.Valid() {
		return unix.EINVAL
	}
	if len(l.path(p)) > pathMax {
		return unix.ENAMETOOLONG
	}
	return nil
}

// attrs decodes an ATTRS reply as the layer shows it.
func (l *Layer) attrs(r *reply) (layers.Attr, error) {
	a, err := r.attrs()
	if err == nil {
		err = l.squash(&a)
	}
	return a, err
}

// broken reports whether err is the server's breach of the protocol, after which
// its channel is not used any more.
func broken(err error) bool {
	var e *protocolError
	return errors.As(err, &e)
}
