package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	extfile "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	skinet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	skunix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"golang.org/x/sys/unix"
)

// name is what is known of a descriptor that has its path from a regular file's
// entry: a FIFO or a terminal.
type name struct {
	file uint32
	tty  string // "" for a FIFO
}

func (l *loader) fifo(e *fifo.FifoEntry) error {
	if e.RegfId != nil {
		l.named[e.GetId()] = name{file: e.GetRegfId()}
	}
	return l.oneMore()
}

// pipe notes one end of a pipe, by the pipe's own number.
func (l *loader) pipe(e *pipe.PipeEntry) error {
	l.others[e.GetId()] = true
	ends := l.pipes[e.GetPipeId()]
	if ends == nil {
		ends = make(map[uint32]uint32)
		l.pipes[e.GetPipeId()] = ends
	}
	ends[e.GetFlags()&unix.O_ACCMODE] = e.GetId()
	return l.oneMore()
}

// pipeObstacles: CRIU makes a pipe anew with the ends that it has dumped, and says nothing
// of one whose other end was somebody else's.
func (l *loader) pipeObstacles() {
	for _, id := range slices.Sorted(maps.Keys(l.pipes)) {
		ends := l.pipes[id]
		_, reads := ends[unix.O_RDONLY]
		_, writes := ends[unix.O_WRONLY]
		_, both := ends[unix.O_RDWR]
		if both || reads == writes {
			continue
		}
		o := Obstacle{
			Level: Caution, What: "pipe",
			Why:    "a process that is not in the checkpoint has its other end, which is gone then: who reads it comes to its end",
			Remedy: "dump both together, or have a file in its place",
		}
		if writes {
			o.Why = "a process that is not in the checkpoint has its other end, which is gone then: who writes to it gets EPIPE and SIGPIPE"
		}
		for _, file := range ends {
			o.PID = l.holders[file]
		}
		l.obstacle(o)
	}
}

// ttyKinds are CRIU's kinds of terminals, as people name them.
var ttyKinds = map[tty.TtyType]string{
	tty.TtyType_PTY: "pty", tty.TtyType_CONSOLE: "console", tty.TtyType_VT: "virtual console",
	tty.TtyType_CTTY: "controlling", tty.TtyType_EXT_TTY: "external", tty.TtyType_SERIAL: "serial",
}

func (l *loader) ttyInfos() error {
	return ignoreMissing(each(l.fsys, "tty-info.img", magicTTYInfo, func(e *tty.TtyInfoEntry) error {
		kind := ttyKinds[e.GetType()]
		if kind == "" {
			kind = "unknown"
		}
		l.ttys[e.GetId()] = kind
		return l.oneMore()
	}))
}

func (l *loader) tty(e *tty.TtyFileEntry) error {
	kind := l.ttys[e.GetTtyInfoId()]
	if kind == "" {
		kind = "unknown"
	}
	if e.RegfId != nil {
		l.named[e.GetId()] = name{file: e.GetRegfId(), tty: kind}
	}
	return l.oneMore()
}

// names tells the files of FIFOs and terminals what they are.
func (l *loader) names() {
	for _, n := range l.named {
		f := l.files[n.file]
		switch {
		case f == nil:
		case n.tty != "":
			f.TTY = n.tty
		case f.Mode&unix.S_IFMT == 0:
			f.Mode |= unix.S_IFIFO
		}
	}
}

// byID is what a descriptor's id stands for, or nil: not a file.
func (l *loader) byID(id uint32) *file {
	if f := l.files[id]; f != nil {
		return f
	}
	if n, ok := l.named[id]; ok {
		return l.files[n.file]
	}
	return l.alias[id]
}

func (l *loader) external(e *extfile.ExtFileEntry) error {
	l.obstacle(Obstacle{
		Level: Blocker, What: "descriptor",
		Why:    fmt.Sprintf("file %d was dumped by a plugin of CRIU, and none is loaded here", e.GetId()),
		Remedy: "restore it with what dumped it",
	})
	return nil
}

// unixSocket keeps the name that a socket is bound to: CRIU binds it anew.
func (l *loader) unixSocket(u *skunix.UnixSkEntry) error {
	const external = 1 // USK_EXTERN: it is not the tasks', one of them is connected to it
	sock := strings.TrimRight(string(u.GetName()), "\x00")
	if sock == "" || u.GetName()[0] == 0 {
		return l.oneMore() // unbound, or an abstract name
	}
	if sock[0] != '/' && u.GetNameDir() != "" {
		sock = path.Join(u.GetNameDir(), sock)
	}
	sock = path.Clean(sock)
	if err := checkPath(sock); err != nil {
		l.warn("a socket is bound to a name that cannot be used: %v", err)
		return l.oneMore()
	}
	f := &file{File: File{Path: sock, Mode: unix.S_IFSOCK | u.GetFilePerms().GetMode()&0o7777}, mount: int64(u.GetMntId())}
	if u.GetUflags()&external != 0 {
		l.obstacle(Obstacle{
			Level: Blocker, What: "socket", Path: sock,
			Why:    "a process that is not in the checkpoint listens there, and CRIU connects anew only if it is told to",
			Remedy: "start that service here, and give CRIU --ext-unix-sk", Options: []string{"ext-unix-sk", "external"},
		})
		f.Refs = []Ref{{Kind: Other}}
	} else {
		f.Refs, f.Deleted = []Ref{{Kind: Bound}}, u.GetDeleted()
		l.dirs = append(l.dirs, f)
	}
	l.loose = append(l.loose, f)
	l.alias[u.GetId()] = f
	return l.oneMore()
}

// States of TCP sockets (the kernel's include/net/tcp_states.h).
const (
	tcpClose  = 7
	tcpListen = 10
)

// inetSocket keeps what a socket wants to find where it is restored.
func (l *loader) inetSocket(s *skinet.InetSkEntry) error {
	local := inetAddr(s.GetSrcAddr())
	switch {
	case s.GetType() != unix.SOCK_STREAM || s.GetState() == tcpClose || s.GetState() == tcpListen:
		if s.GetSrcPort() != 0 && !s.GetIpOpts().GetFreebind() && local.IsValid() && !local.IsUnspecified() && !local.IsLoopback() {
			l.c.addresses = append(l.c.addresses, local)
		}
	default:
		l.obstacle(Obstacle{
			Level: Blocker, What: "connection",
			Why:    fmt.Sprintf("a TCP connection from %v to %v is open", netip.AddrPortFrom(local, uint16(s.GetSrcPort())), netip.AddrPortFrom(inetAddr(s.GetDstAddr()), uint16(s.GetDstPort()))),
			Remedy: "close it with --tcp-close, or move its address here and give CRIU --tcp-established", Options: []string{"tcp-close", "tcp-established"},
		})
	}
	return l.oneMore()
}

// inetAddr turns the words of an address, stored as they lie in memory, into one.
func inetAddr(words []uint32) netip.Addr {
	if len(words) != 1 && len(words) != 4 {
		return netip.Addr{}
	}
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

func (l *loader) inotify(e *fsnotify.InotifyFileEntry) error {
	for _, wd := range e.GetWd() {
		if err := l.watch(wd.GetFHandle()); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) inotifyWatch(e *fsnotify.InotifyWdEntry) error {
	return l.watch(e.GetFHandle())
}

func (l *loader) fanotify(e *fsnotify.FanotifyFileEntry) error {
	for _, m := range e.GetMark() {
		if err := l.fanotifyMark(m); err != nil {
			return err
		}
	}
	return nil
}

// fanotifyMark keeps the file of a mark. A mark on a mount has that by its id
// and, in newer images, its path.
func (l *loader) fanotifyMark(m *fsnotify.FanotifyMarkEntry) error {
	if ie := m.GetIe(); ie != nil {
		return l.watch(ie.GetFHandle())
	}
	if me := m.GetMe(); me != nil && me.GetPath() != "" {
		return l.watchPath(me.GetPath(), int64(me.GetMntId()))
	}
	return nil
}

// watch adds a watched file. All that images have of it is a path, and that
// only if the dump was asked for it: file handles mean nothing on another host.
func (l *loader) watch(h *fh.FhEntry) error {
	if h.GetPath() == "" {
		l.obstacle(Obstacle{
			Level: Blocker, What: "watch",
			Why:    "a watched file (inotify or fanotify) is known by its handle only, which means nothing on another host",
			Remedy: "dump again with --force-irmap (and --irmap-scan-path DIR, if it lies elsewhere than in /etc, /var/spool and the like)",
		})
		return l.oneMore()
	}
	mount := int64(-1)
	if h.MntId != nil {
		mount = int64(h.GetMntId())
	}
	return l.watchPath(h.GetPath(), mount)
}

func (l *loader) watchPath(p string, mount int64) error {
	if p[0] != '/' {
		p = "/" + p
	}
	if err := checkPath(p); err != nil {
		l.warn("a watch on a name that cannot be used: %v", err)
		return l.oneMore()
	}
	l.loose = append(l.loose, &file{File: File{Path: p, Refs: []Ref{{Kind: Watch}}}, mount: mount})
	return l.oneMore()
}

// confined notes what a task is confined by: that has to be here too.
func (l *loader) confined(c *core.CoreEntry) {
	if l.lsm != "" && c.GetThreadCore().GetCreds().GetLsmProfile() != "" {
		l.c.LSM = l.lsm
	}
}

// thread reads where one more thread of a task goes on.
func (l *loader) thread(pid, tid uint32) error {
	if tid == pid {
		return nil
	}
	var c core.CoreEntry
	err := one(l.fsys, fmt.Sprintf("core-%d.img", tid), magicCore, &c)
	if err == nil {
		l.confined(&c)
		l.startsAt(pid, &c)
	}
	if errors.Is(err, fs.ErrNotExist) {
		l.obstacle(Obstacle{
			Level: Blocker, What: "thread", PID: pid,
			Why: fmt.Sprintf("core-%d.img of its thread is missing", tid), Remedy: "copy the images again, all of them",
		})
		return nil
	}
	return err
}
