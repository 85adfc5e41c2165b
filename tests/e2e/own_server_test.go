package e2e

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// withOwn are the options for our own server on the source, confined to what is
// mounted.
func (s *source) withOwn(t *testing.T) string {
	t.Helper()
	return ",sftp_server=" + testbed.BuildRace(t) + " sftp-server -R -d " + s.dir
}

func xattr(t *testing.T, path, name string) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		t.Errorf("%s of %s: %v", name, path, err)
		return ""
	}
	return string(b[:n])
}

const (
	aclName = "system.posix_acl_access"

	// userACL is u::rw-,u:1234:r--,g::r--,m::r--,o::---.
	userACL = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
)

// TestOwnServer: what SFTP does not show comes across, and stays with a file that is
// brought up, holes as well. A write does not wait for it.
func TestOwnServer(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "f", 100_000)
	theirs := func(name string) string { return filepath.Join(s.dir, name) }
	must(t, unix.Setxattr(theirs("f"), "user.note", []byte("from there"), 0))
	must(t, unix.Setxattr(theirs("f"), aclName, []byte(userACL), 0))
	must(t, unix.Setxattr(theirs("f"), "trusted.overlay.redirect", []byte("/etc"), 0))
	when := unix.NsecToTimespec(1_234_567_890_123_456_789)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, theirs("f"), []unix.Timespec{when, when}, 0))
	sparse, err := os.Create(theirs("sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("data"), 20<<20)
	must(t, errors.Join(err, sparse.Truncate(64<<20), sparse.Close()))
	must(t, os.Symlink(theirs("f"), theirs("link")))

	m := s.mount(t, s.withOwn(t)+",symlinks=rebase")
	var st unix.Stat_t
	must(t, unix.Stat(m.Path("f"), &st))
	if st.Mtim != when || st.Size != 100_000 {
		t.Errorf("%+v", st)
	}
	if got := xattr(t, m.Path("f"), "user.note"); got != "from there" {
		t.Errorf("user.note is %q", got)
	}
	if got := xattr(t, m.Path("f"), aclName); got != userACL {
		t.Errorf("the ACL is %q", got)
	}
	if got, err := os.ReadFile(m.Path("link")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("by the symlink: %d bytes, %v", len(got), err)
	}
	if target, err := os.Readlink(m.Path("link")); err != nil || target != "f" {
		t.Errorf("the symlink leads to %q, %v", target, err)
	}

	f, err := os.OpenFile(m.Path("f"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	s.link.Stall()
	inTime(t, "a write", func() {
		if _, err := f.Write([]byte("more")); err != nil {
			t.Error(err)
		}
	})
	s.link.Resume()
	want = append(want, "more"...)
	if got, err := os.ReadFile(m.Path("f")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	up := filepath.Join(s.upper(), "f")
	if a, b := xattr(t, up, "user.note"), xattr(t, up, aclName); a != "from there" || b != userACL {
		t.Errorf("the copy has %q and %q", a, b)
	}
	if _, err := unix.Lgetxattr(up, "trusted.overlay.redirect", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the source's note of its own overlay came up: %v", err)
	}

	g, err := os.OpenFile(m.Path("sparse"), os.O_RDWR, 0)
	must(t, err)
	defer g.Close()
	_, err = g.WriteAt([]byte("new"), 40<<20)
	must(t, err)
	s.filled(t, "sparse")
	content := make([]byte, 64<<20)
	copy(content[20<<20:], "data")
	copy(content[40<<20:], "new")
	if got, err := os.ReadFile(m.Path("sparse")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	must(t, unix.Stat(filepath.Join(s.upper(), "sparse"), &st))
	if st.Blocks*512 > 4<<20 {
		t.Errorf("the sparse file takes %d bytes", st.Blocks*512)
	}
}

// mountLine is what the kernel says of the mount on dir.
func mountLine(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+dir+" ") {
			return line
		}
	}
	t.Fatalf("nothing is mounted on %s", dir)
	return ""
}

// TestSpecialFiles: FIFOs, sockets and devices of a source are shown and are this
// host's when they are opened; there nothing is ever touched. Devices are none unless
// the mount says so.
func TestSpecialFiles(t *testing.T) {
	for name, own := range map[string]bool{"own server": true, "sftp-server": false} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t)
			theirs := func(name string) string { return filepath.Join(s.dir, name) }
			must(t, unix.Mkfifo(theirs("fifo"), 0o666))
			must(t, unix.Mknod(theirs("zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
			listening, err := net.Listen("unix", theirs("socket"))
			must(t, err)
			defer listening.Close()
			options := ""
			if own {
				options = s.withOwn(t)
			}
			m := s.mount(t, options)
			for name, typ := range map[string]uint32{"fifo": unix.S_IFIFO, "zero": unix.S_IFCHR, "socket": unix.S_IFSOCK} {
				var st unix.Stat_t
				if err := unix.Lstat(m.Path(name), &st); err != nil || st.Mode&unix.S_IFMT != typ {
					t.Errorf("%s: mode %o, %v", name, st.Mode, err)
				}
			}

			if line := mountLine(t, m.Point); !strings.Contains(line, "nosuid,nodev") {
				t.Errorf("mounted without nosuid,nodev: %s", line)
			}
			said := make(chan string)
			go func() {
				b, err := os.ReadFile(m.Path("fifo"))
				said <- string(b)
				if err != nil {
					t.Error(err)
				}
			}()
			w, err := os.OpenFile(m.Path("fifo"), os.O_WRONLY, 0)
			must(t, err)
			// A reader here is none there.
			if fd, err := unix.Open(theirs("fifo"), unix.O_WRONLY|unix.O_NONBLOCK, 0); !errors.Is(err, unix.ENXIO) {
				t.Errorf("the FIFO on the source: %d, %v, want ENXIO", fd, err)
			}
			_, err = io.WriteString(w, "hello")
			must(t, errors.Join(err, w.Close()))
			if got := <-said; got != "hello" {
				t.Errorf("through the FIFO came %q", got)
			}

			if c, err := net.DialTimeout("unix", m.Path("socket"), 5*time.Second); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("the socket: %v, %v, want ECONNREFUSED", c, err)
			}
			if f, err := os.Open(m.Path("zero")); !errors.Is(err, unix.EACCES) {
				t.Errorf("the device: %v, %v, want EACCES", f, err)
			}
			m.Unmount()

			m = s.mount(t, options+",dev,suid")
			if line := mountLine(t, m.Point); strings.Contains(line, "nosuid") || strings.Contains(line, "nodev") {
				t.Errorf("with dev,suid: %s", line)
			}
			f, err := os.Open(m.Path("zero"))
			if own {
				must(t, err)
				defer f.Close()
				b := []byte("xxxx")
				if n, err := f.Read(b); n != 4 || err != nil || string(b) != "\x00\x00\x00\x00" {
					t.Errorf("with dev: %q, %v", b[:n], err)
				}
			} else if err == nil { // SFTP does not tell which device it is: none
				t.Error("a device of no number opens")
			}
		})
	}
}

// TestHardLinksOfASource: in a mount without an upper the names of one file are one
// file, by the number that tar and rsync go by, also after one of them has gone.
func TestHardLinksOfASource(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "one", 200_000)
	other := s.put(t, "other", 1000)
	must(t, os.Mkdir(filepath.Join(s.dir, "d"), 0o755))
	must(t, os.Link(filepath.Join(s.dir, "one"), filepath.Join(s.dir, "d/two")))
	m := testbed.Mount(t, "lowerdir="+s.sshd.Target(s.dir)+s.withOwn(t), s.mnt(), testbed.MountConfig{Env: s.sshd.Env()})
	var one, two, third unix.Stat_t
	must(t, unix.Stat(m.Path("one"), &one))
	must(t, unix.Stat(m.Path("d/two"), &two))
	must(t, unix.Stat(m.Path("other"), &third))
	if one.Ino != two.Ino || one.Nlink != 2 || one.Ino == third.Ino {
		t.Errorf("inodes %d, %d and %d, %d links", one.Ino, two.Ino, third.Ino, one.Nlink)
	}
	for name, want := range map[string][]byte{"one": want, "d/two": want, "other": other} {
		if got, err := os.ReadFile(m.Path(name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	must(t, os.Remove(filepath.Join(s.dir, "one")))
	testbed.Until(t, "the name to be gone", func() bool { return errors.Is(unix.Stat(m.Path("one"), &one), unix.ENOENT) })
	if got, err := os.ReadFile(m.Path("d/two")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the name that is left: %d bytes, %v", len(got), err)
	}
}

// TestOwnersByName: owners of a source are those of the same name here, whichever
// server tells the names, and that is what a copy has.
func TestOwnersByName(t *testing.T) {
	s := newSource(t)
	s.put(t, "f", 1000)
	must(t, os.Chown(filepath.Join(s.dir, "f"), 987_654, 1))
	for name, options := range map[string]string{
		"own server": s.withOwn(t), "auto, and there is none": ",sftp_server=auto", "sftp-server": "",
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.RemoveAll(s.upper()))
			must(t, os.RemoveAll(s.work()))
			must(t, os.Mkdir(s.upper(), 0o755))
			m := s.mount(t, options+",idmap=name,gid=1234")
			defer m.Unmount()
			must(t, os.Chmod(m.Path("f"), 0o640))
			for _, path := range []string{m.Path("f"), filepath.Join(s.upper(), "f")} {
				var st unix.Stat_t
				must(t, unix.Stat(path, &st))
				if st.Uid != 65534 || st.Gid != 1 || st.Mode != unix.S_IFREG|0o640 {
					t.Errorf("%s: %d:%d, mode %o", path, st.Uid, st.Gid, st.Mode)
				}
			}
		})
	}
}
