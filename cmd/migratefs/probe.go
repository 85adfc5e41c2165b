package main

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// What many hosts need of the filesystems they share is in
// docs/shared-filesystems.md. Whether a server keeps what it promises cannot be
// seen from one client; what it lacks can.

// offer is something that the upper may offer.
type offer struct {
	what    string
	needed  bool   // many hosts cannot do without
	lacking string // what it is like without
	try     func(p *probing) error
}

var offers = []offer{
	{what: "O_EXCL", needed: true, try: (*probing).exclusive},
	{what: "hard links between directories", needed: true, try: (*probing).link},
	{what: "links that never replace a name", needed: true, try: (*probing).linkOver},
	{what: "links of open files", needed: true, try: (*probing).linkOpen},
	{
		what: "that a file without names cannot be linked", try: (*probing).linkNameless,
		lacking: "two mounts on this host may disagree for a moment about what one of them removes",
	},
	{
		what: "trusted.* xattrs", try: (*probing).trusted,
		lacking: "who has a file open while another host moves it gets ESTALE",
	},
	{what: "O_TMPFILE", try: (*probing).tmpfile, lacking: "programs cannot use it, and make names instead"},
	{
		what: "flags of renameat2(2)", try: (*probing).renameFlags,
		lacking: "programs that exchange names get EINVAL",
	},
	{what: "fsync of directories", try: (*probing).syncDir, lacking: "names may be lost in a power failure, with files that moved"},
	{what: "birth times", try: (*probing).born, lacking: "a file that reuses an inode number at once may be taken for the one before"},
}

// probing is what the offers are tried in: a directory of the upper that is empty,
// and one in it.
type probing struct{ dir, sub int }

const probeName = copyup.TempPrefix + "probe"

// probe tries what the upper offers. What is missing and needed is an error, the
// rest is a line in the log each.
func (st *stack) probe(dir int) error {
	for _, d := range st.dirs {
		if err := st.probeMount(d); err != nil {
			return err
		}
	}
	for _, o := range offers {
		err := probeOne(dir, o.try)
		switch {
		case err == nil:
		case noRoom(err):
			st.log.Warn("what the filesystem of the upper offers is not known", "upper", st.upper, "cause", err)
			return nil // who wants to make room needs the mount
		case o.needed:
			return mountErrorf("upper %q: hosts=many: the filesystem lacks %s: %v: name an upper on another, or give hosts=single and mount it on one host only", st.o.upper, o.what, err)
		default:
			st.log.Info("the filesystem of the upper lacks "+o.what+": "+o.lacking, "upper", st.upper, "cause", err)
		}
	}
	return nil
}

func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// errMissing: a call did not fail as it must.
var errMissing = errors.New("what must fail succeeds")

// probeOne tries one offer in a directory of its own, which goes afterwards.
func probeOne(dir int, try func(*probing) error) error {
	name := copyup.TempName()
	sub, err := sys.MkdirOpen(dir, name)
	if err != nil {
		return err
	}
	p := &probing{dir: dir, sub: sub}
	err = try(p)
	unix.Close(sub)
	copyup.RemoveTemp(dir, probeName)
	copyup.RemoveTemp(dir, name)
	return err
}

// create makes a file.
func (p *probing) create(dir int, name string) (fd int, err error) {
	return sys.Create(dir, name, unix.O_RDWR|unix.O_EXCL, 0o600)
}

// made is create, closed.
func (p *probing) made(dir int, name string) error {
	fd, err := p.create(dir, name)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// mustFail is nil if err is one of want.
func mustFail(err error, want ...unix.Errno) error {
	for _, w := range want {
		if err == w {
			return nil
		}
	}
	if err == nil {
		return errMissing
	}
	return err
}

func (p *probing) exclusive() error {
	if err := p.made(p.sub, "a"); err != nil {
		return err
	}
	return mustFail(p.made(p.sub, "a"), unix.EEXIST)
}

func (p *probing) link() error {
	if err := p.made(p.sub, "a"); err != nil {
		return err
	}
	return sys.Link(p.sub, "a", p.dir, probeName)
}

func (p *probing) linkOver() error {
	if err := p.link(); err != nil {
		return err
	}
	if err := p.made(p.sub, "b"); err != nil {
		return err
	}
	return mustFail(sys.Link(p.sub, "b", p.dir, probeName), unix.EEXIST)
}

func (p *probing) linkOpen() error {
	fd, err := p.create(p.sub, "a")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.LinkFd(fd, p.dir, probeName)
}

func (p *probing) linkNameless() error {
	fd, err := p.create(p.dir, probeName)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := sys.Unlink(p.dir, probeName); err != nil {
		return err
	}
	var stx unix.Statx_t
	_ = sys.Statx(fd, "", &stx) // NFS keeps a name for what is open on this client
	return mustFail(sys.LinkFd(fd, p.dir, probeName), unix.ENOENT, unix.ESTALE)
}

func (p *probing) trusted() error {
	return sys.Setxattr(p.sub, "", copyup.XattrOrigin, []byte("probe"), 0)
}

func (p *probing) tmpfile() error {
	fd, err := sys.Tmpfile(p.sub, unix.O_RDWR, 0o600)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func (p *probing) renameFlags() error {
	if err := p.made(p.sub, "a"); err != nil {
		return err
	}
	return sys.Rename(p.sub, "a", p.sub, "b", unix.RENAME_NOREPLACE)
}

func (p *probing) syncDir() error { return sys.Fsync(p.sub) }

func (p *probing) born() error {
	var stx unix.Statx_t
	if err := sys.Statx(p.sub, "", &stx); err != nil {
		return err
	}
	if stx.Mask&unix.STATX_BTIME == 0 {
		return unix.EOPNOTSUPP
	}
	return nil
}

// probeMount looks at how the filesystem of a layer is mounted.
func (st *stack) probeMount(d namedDir) error {
	m, ok := mountOf(d.real)
	if !ok {
		return nil
	}
	switch m.fsType {
	case "nfs", "nfs4":
		if why := unfitNFS(m.opts); why != "" {
			return mountErrorf("%s %q: hosts=many: the NFS mount on %q %s", d.what, d.text, m.point, why)
		}
		if strings.Contains(m.opts, ",nolock") || strings.Contains(m.opts, ",local_lock=all") || strings.Contains(m.opts, ",local_lock=flock") {
			st.log.Info("locks on this NFS mount are this host's alone: a mount of the same upper with hosts=single, or in overlay mode, on another host is not noticed", d.what, d.real)
		}
	}
	if d.what == "lower" && !hasBirthTimes(d.real) {
		st.log.Info("the filesystem of the lower has no birth times: a file that reuses an inode number at once may be taken for the one before", "lower", d.real)
	}
	return nil
}

// unfitNFS says why many hosts cannot use an NFS mount with these options: a client
// that remembers that names are not there does not find what another host has moved.
func unfitNFS(opts string) string {
	if strings.Contains(opts, ",lookupcache=pos") || strings.Contains(opts, ",lookupcache=none") {
		return ""
	}
	return "remembers which names are not there, so files that other hosts move would not be found: mount it with lookupcache=positive, or give hosts=single and use one host only"
}

func hasBirthTimes(dir string) bool {
	var stx unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME, &stx) == nil && stx.Mask&unix.STATX_BTIME != 0
}

// mountOf returns the mount that dir lies on.
func mountOf(dir string) (mountInfo, bool) {
	var stx unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &stx) != nil || stx.Mask&unix.STATX_MNT_ID == 0 {
		return mountInfo{}, false
	}
	ms, err := mounts()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return mountInfo{}, false
	}
	for _, m := range ms {
		if m.id == strconv.FormatUint(stx.Mnt_id, 10) {
			return m, true
		}
	}
	return mountInfo{}, false
}
