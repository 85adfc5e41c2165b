package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/layertest"
	"github.com/migratefs/migratefs/layers/remote/extension"
	"github.com/migratefs/migratefs/layers/remote/server"
)

// The test binary is the server that sshd starts.
func init() {
	dir, ok := os.LookupEnv("MIGRATEFS_TEST_SERVE")
	if !ok {
		return
	}
	err := server.Serve(context.Background(), os.Stdin, os.Stdout, server.Config{Dir: dir, ReadOnly: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ownCommand is a command line that serves dir, everything if it is empty.
func ownCommand(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	return "/usr/bin/env MIGRATEFS_TEST_SERVE=" + dir + " " + self
}

// direct is a dialer that runs our server in this process.
func direct(scfg server.Config) dialer {
	return func(context.Context) (transport, error) {
		fromClient, toServer := io.Pipe()
		fromServer, toClient := io.Pipe()
		over := make(chan struct{})
		go func() {
			defer close(over)
			_ = server.Serve(context.Background(), fromClient, toClient, scfg)
			toClient.Close()
			fromClient.Close()
		}()
		return &pipeTransport{fromServer, toServer, func() {
			fromClient.Close()
			toClient.Close()
			fromServer.Close()
			toServer.Close()
			<-over
		}}, nil
	}
}

// owned is a Config for dir on our server.
func owned(dir string, scfg server.Config) Config {
	cfg := newFake().config()
	cfg.Target.Path, cfg.dial = dir, direct(scfg)
	return cfg
}

// Over our own server the layer sees all that a local one does, confined or not.
func TestConformanceOwnServer(t *testing.T) {
	for name, confined := range map[string]bool{"all": false, "confined": true} {
		t.Run(name, func(t *testing.T) {
			layertest.Run(t, layertest.Limits{}, func(t *testing.T, source string) layers.Layer {
				scfg := server.Config{ReadOnly: true}
				if confined {
					scfg.Dir = source
				}
				return open(t, owned(source, scfg))
			})
		})
	}
}

// What starts the server: a command, a subsystem, or a ForceCommand, and auto, which
// falls back to whatever the subsystem is.
func TestServerCommand(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	write(t, filepath.Join(dir, "f"), "text")
	plain := "Subsystem sftp " + sftpServer(t)
	for name, c := range map[string]struct {
		lines  []string
		server string
		ours   bool
	}{
		"command":                   {[]string{"Subsystem sftp /bin/false"}, ownCommand(t, ""), true},
		"another command":           {[]string{"Subsystem sftp /bin/false"}, sftpServer(t) + " -R", false},
		"subsystem":                 {[]string{"Subsystem sftp " + ownCommand(t, dir)}, "", true},
		"ForceCommand":              {[]string{plain, "ForceCommand " + ownCommand(t, dir)}, "", true},
		"auto, ForceCommand":        {[]string{plain, "ForceCommand " + ownCommand(t, dir)}, "auto", true},
		"auto, no such program":     {[]string{plain, "SetEnv PATH=/nonexistent"}, "auto", false},
		"auto, nothing but SFTP":    {[]string{"Subsystem sftp internal-sftp", "ForceCommand internal-sftp"}, "auto", false},
		"auto, a program that ends": {[]string{plain, "SetEnv PATH=" + filepath.Join(dir, "bin")}, "auto", false},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(name, "ends") {
				must(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "bin/migratefs"), []byte("#!/bin/sh\necho unknown command\nexit 2\n"), 0o755))
			}
			cfg := startSSHD(t, c.lines...).layer(dir)
			cfg.Server = c.server
			l := open(t, cfg)
			a, err := l.Stat(soon(t), "f")
			must(t, err)
			if a.Has(layers.KnownIno) != c.ours || l.ours.attrs != c.ours {
				t.Errorf("known is %b, ours is %v, want %v", a.Known, l.ours.attrs, c.ours)
			}
			if b, err := content(soon(t), l, "f", 4); string(b) != "text" || err != nil {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func TestServerCommandFails(t *testing.T) {
	cfg := startSSHD(t).layer(t.TempDir())
	cfg.Server = "no-such-server -R"
	_, err := New(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), `"no-such-server -R" on source ended with status 127`) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{
		"-x", "a;b", "a|b", "a&b", "$(a)", "`a`", "a\nb", "a  b", "a 'b'", `a "b"`, "a\\b", "a>b", "a*", "a?", "a[b]", "~/a", "a#b", "a!b", "a{b,c}", "a\tb",
		"a\x00", "ä", " ", "a ", strings.Repeat("x", 1001),
	} {
		cfg.Server = bad
		if _, err := New(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "sftp_server=") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A server of another kind than at the mount is none: what was known of files could
// not be compared.
func TestServerChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "f"), "text")
		own, fake := direct(server.Config{}), newFake()
		fake.files[dir] = fake.files["/src"]
		cfg := owned(dir, server.Config{})
		n := 0
		cfg.dial = func(ctx context.Context) (transport, error) {
			if n++; n > 1 {
				return fake.dial(ctx)
			}
			return own(ctx)
		}
		cfg.Timeout = time.Second
		l := open(t, cfg)
		_, err := l.Stat(soon(t), "f")
		must(t, err)
		l.mu.Lock()
		c := l.cur
		l.mu.Unlock()
		c.fail(errLost, nil)
		if _, err := l.Stat(soon(t), "f"); !errors.Is(err, layers.ErrOffline) {
			t.Errorf("%v, want ErrOffline", err)
		}
	})
}

// Times with nanoseconds, and that of the last change, tell versions apart that look
// the same to plain SFTP: also when one is made within the second of the other, or
// hidden with touch -r.
func TestExactVersions(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	l := open(t, owned(dir, server.Config{}))
	for what, change := range map[string]func(st *unix.Stat_t) error{
		"within the second": func(*unix.Stat_t) error { return os.WriteFile(name, []byte("after!"), 0o644) },
		"touch -r": func(st *unix.Stat_t) error {
			return errors.Join(os.WriteFile(name, []byte("after!"), 0o644),
				unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{st.Atim, st.Mtim}, 0))
		},
	} {
		t.Run(what, func(t *testing.T) {
			must(t, os.WriteFile(name, []byte("before"), 0o644))
			time.Sleep(200 * time.Millisecond) // for the kernel's clock for files, and the server's doubt
			var st unix.Stat_t
			must(t, unix.Stat(name, &st))
			a, err := l.Stat(soon(t), "f")
			must(t, err)
			f, err := l.Open(soon(t), "f", &a)
			must(t, err)
			defer f.Close()
			if !f.(*File).Settled() {
				t.Error("not settled")
			}
			must(t, change(&st))
			b := make([]byte, 6)
			if n, err := f.ReadAt(soon(t), b, 0); !errors.Is(err, layers.ErrStale) && string(b[:n]) != "before" {
				t.Errorf("an open file reads %q, %v", b[:n], err)
			}
			if _, err := l.Open(soon(t), "f", &a); !errors.Is(err, layers.ErrStale) {
				t.Errorf("%v, want ErrStale", err)
			}
		})
	}
}

// A note of size and time that was made with the other kind of server still fits.
func TestVersionOfTheOtherKind(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "text")
	own := open(t, owned(dir, server.Config{}))
	plain := open(t, startSSHD(t).layer(dir))
	for _, l := range []*Layer{own, plain} {
		for _, from := range []*Layer{own, plain} {
			a, err := from.Stat(soon(t), "f")
			must(t, err)
			note := layers.Attr{Known: layers.KnownSize | layers.KnownTimes, Mode: a.Mode, Size: a.Size, Mtime: a.Mtime}
			f, err := l.Open(soon(t), "f", &note)
			must(t, err)
			b := make([]byte, 4)
			if _, err := f.ReadAt(soon(t), b, 0); err != nil || string(b) != "text" {
				t.Errorf("%q, %v", b, err)
			}
			f.Close()
			note.Mtime.Sec--
			if _, err := l.Open(soon(t), "f", &note); !errors.Is(err, layers.ErrStale) {
				t.Errorf("another time: %v", err)
			}
		}
	}
}

// Extended attributes: many, large, and those that mean nothing here.
func TestXattrs(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	write(t, name, "")
	// tmpfs and ext4 do not hold as many: the server's answers are cut short instead.
	for i := range 40 {
		if err := unix.Setxattr(name, fmt.Sprintf("user.%02d", i), bytes.Repeat([]byte{byte(i)}, 50), 0); err != nil {
			t.Fatal(err)
		}
	}
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xd2\x04\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")
	must(t, unix.Setxattr(name, xattrAccess, acl, 0))
	// What only root can give a file. Capabilities are what setuid is, all else is between
	// the source's root and its programs.
	caps, root := []byte("\x00\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), os.Geteuid() == 0
	for name2, value := range map[string][]byte{
		"security.capability": caps, "security.something": []byte("x"), "trusted.something": []byte("x"),
		"trusted.overlay.redirect": []byte("/etc"), "user.migratefs.object": []byte("x"),
	} {
		if err := unix.Setxattr(name, name2, value, 0); err != nil && root {
			t.Fatal(name2, err)
		}
	}
	n := 41
	if root {
		n++
	}
	l := open(t, owned(dir, server.Config{}))
	x, err := l.Xattrs(soon(t), "f")
	if root && string(x["security.capability"]) != string(caps) {
		t.Errorf("capabilities are %q", x["security.capability"])
	}
	if err != nil || len(x) != n || string(x[xattrAccess]) != string(acl) || string(x["user.07"]) != strings.Repeat("\x07", 50) {
		t.Errorf("%d, %v: %q", len(x), err, x[xattrAccess])
	}
	if _, err := l.Xattrs(soon(t), "none"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, want ENOENT", err)
	}
	if _, err := l.Xattrs(soon(t), "f/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("%v, want ENOTDIR", err)
	}
	uid := uint32(7)
	squashed := owned(dir, server.Config{})
	squashed.UID = &uid
	x, err = open(t, squashed).Xattrs(soon(t), "f")
	if err != nil || len(x[xattrAccess]) != len(acl)-aclEntry {
		t.Errorf("%q, %v: want the user left out", x[xattrAccess], err)
	}
	if c, ok := x["security.capability"]; ok {
		t.Errorf("capabilities %q of a file whose owner is not the source's", c)
	}
}

func TestRebase(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	for target, want := range map[string]string{
		"/etc/passwd": "/etc/passwd", "x/y": "x/y", "../x": "../x",
		dir: "../..", dir + "/": "../..", dir + "/a/b/x": "../../a/b/x", dir + "/a//x/": "../../a//x/",
		dir + "/../x": dir + "/../x", dir + "x/y": dir + "x/y",
	} {
		for _, rebase := range []bool{true, false} {
			name := filepath.Join(dir, "a/b/link")
			_ = os.Remove(name)
			must(t, os.Symlink(target, name))
			cfg := owned(dir, server.Config{})
			cfg.Rebase = rebase
			l := open(t, cfg)
			expect := target
			if rebase {
				expect = want
			}
			if got, err := l.Readlink(soon(t), "a/b/link"); got != expect || err != nil {
				t.Errorf("%q is %q, %v, want %q", target, got, err, expect)
			}
		}
	}
	l := &Layer{cfg: Config{Rebase: true, Target: Target{Path: "/data"}}, root: rootID{path: "/real"}}
	for target, want := range map[string]string{"/data": ".", "/data/x": "x", "/real/x": "x", "/": "/"} {
		if got := l.rebase("link", target); got != want {
			t.Errorf("%q is %q, want %q", target, got, want)
		}
	}
	l.root.path, l.cfg.Target.Path = "/", "/"
	if got := l.rebase("usr/bin/cc", "/etc/alternatives/cc"); got != "../../etc/alternatives/cc" {
		t.Error(got)
	}
}

// A sparse file is read around its holes.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	const size = 64 << 20
	want := make([]byte, size)
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	must(t, f.Truncate(size))
	for _, at := range []int{0, 5 << 20, 5<<20 + 300<<10, 40<<20 + 123, size - 100} {
		copy(want[at:], random(uint64(at), 100))
		_, err := f.WriteAt(want[at:at+100], int64(at))
		must(t, err)
	}
	for i := range 40 { // more pieces than are read one by one
		at := 50<<20 + i*128<<10
		copy(want[at:], "data")
		_, err := f.WriteAt([]byte("data"), int64(at))
		must(t, err)
	}
	must(t, f.Close())
	l := open(t, owned(dir, server.Config{}))
	file, err := l.Open(soon(t), "f", nil)
	must(t, err)
	defer file.Close()
	before := l.Stats()
	got := make([]byte, size)
	for off := 0; off < size; off += 8 << 20 {
		n, err := file.ReadAt(soon(t), got[off:off+8<<20], int64(off))
		if n != 8<<20 || err != nil && err != io.EOF {
			t.Fatalf("at %d: %d, %v", off, n, err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	if wire := l.Stats().WireIn - before.WireIn; wire > 8<<20 {
		t.Errorf("%d bytes came over the wire", wire)
	}
	// A hole that is known needs no exchange.
	before = l.Stats()
	if _, err := file.ReadAt(soon(t), got[:1<<20], 20<<20); err != nil || !bytes.Equal(got[:1<<20], want[20<<20:21<<20]) {
		t.Error(err)
	}
	if n := l.Stats().Bursts - before.Bursts; n != 0 {
		t.Errorf("%d exchanges", n)
	}
	// It is a hole of that version only.
	must(t, os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("x"), size), 0o644))
	other, err := l.Open(soon(t), "f", nil)
	must(t, err)
	defer other.Close()
	if _, err := other.ReadAt(soon(t), got[:1<<20], 20<<20); err != nil || got[0] != 'x' {
		t.Errorf("%q, %v", got[0], err)
	}
}

// FuzzExtended: what a server says in our extensions is checked.
func FuzzExtended(f *testing.F) {
	f.Add(packet(fxpExtendedReply, 1, cat(u64(extension.End), u32(2), u64(0, 10, 20, 30))), int64(0))
	f.Add(packet(fxpExtendedReply, 1, cat(u32(0, 2), str(str(nil, "user.a"), "x"), str(str(nil, "user.b"), ""))), int64(5))
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		r, _, err := readPacket(bytes.NewReader(b), func(uint32) int { return maxPacket })
		if err != nil || off < 0 {
			return
		}
		if x, _, err := r.xattrs(); err == nil {
			for name, v := range x {
				if name == "" || len(name) > xattrNameMax || len(v) > xattrMax || strings.ContainsRune(name, 0) {
					t.Errorf("%q, %d bytes", name, len(v))
				}
			}
		}
		if e, err := r.extents(off); err == nil {
			at := off
			for _, s := range e.data {
				if s.from < at || s.to <= s.from || s.to > e.end {
					t.Errorf("%+v", e)
				}
				at = s.to
			}
			if e.end <= off {
				t.Errorf("%+v", e)
			}
			for _, p := range e.pieces(off, min(e.end, off+1<<20)) {
				if p.from < off || p.to > off+1<<20 || p.from >= p.to {
					t.Errorf("%+v of %+v", p, e)
				}
			}
		}
		_ = r.ok()
		l := &Layer{ids: newIDMap(nil, nil)}
		if _, err := l.ownACL(b); err == nil && len(b) < 4 {
			t.Error("an ACL of nothing")
		}
		parseDatabase(b)
	})
}

// FuzzStat: an extended pair is a stat, or nothing.
func FuzzStat(f *testing.F) {
	f.Add(extension.AppendStat(nil, &layers.Attr{Known: layers.KnownBtime | layers.KnownBare, Nlink: 1, Ino: 5, Blocks: 8}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := layers.Attr{Mode: unix.S_IFREG, Known: layers.KnownSize}
		was := a
		if !extension.DecodeStat(b, &a) {
			if a != was {
				t.Errorf("%+v", a)
			}
			return
		}
		if a.Blocks < 0 || a.Mtime.Nsec >= 1e9 || a.Ctime.Nsec >= 1e9 || a.Btime.Nsec >= 1e9 || a.Atime.Nsec >= 1e9 || a.Has(layers.KnownIno) != (a.Ino != 0) {
			t.Errorf("%+v", a)
		}
		var again layers.Attr
		if !extension.DecodeStat(extension.AppendStat(nil, &a), &again) || again.Ino != a.Ino || again.Ctime != a.Ctime || again.Blocks != a.Blocks {
			t.Errorf("%+v, %+v", a, again)
		}
	})
}

// Another directory at the root's path is another source, on the same filesystem too.
func TestRootReplaced(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "root")
	must(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "f"), "text")
	l := open(t, owned(dir, server.Config{}))
	_, err := l.Stat(soon(t), "f")
	must(t, err)
	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Mkdir(dir, 0o755))
	for what, err := range map[string]error{
		"stat": second(l.Stat(soon(t), "f")), "readdir": second(l.ReadDir(soon(t), "")), "xattrs": second(l.Xattrs(soon(t), "f")),
	} {
		if !errors.Is(err, layers.ErrReplaced) {
			t.Errorf("%s: %v, want ErrReplaced", what, err)
		}
	}
	must(t, os.Remove(dir))
	must(t, os.Rename(dir+".old", dir))
	if _, err := l.Stat(soon(t), "f"); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

// Our own server takes no more exchanges than another.
func TestRoundTripsOwnServer(t *testing.T) {
	dir := t.TempDir()
	for i := range 1000 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%04d", i)), "text")
	}
	must(t, unix.Setxattr(filepath.Join(dir, "f0000"), "user.note", []byte("x"), 0))
	cfg := owned(dir, server.Config{})
	cfg.Connections = 1 // the others say hello when they like
	l := open(t, cfg)
	count := func(what string, most int64, f func() error) {
		t.Helper()
		before := l.Stats().Bursts
		must(t, f())
		if n := l.Stats().Bursts - before; n > most {
			t.Errorf("%s takes %d exchanges, want at most %d", what, n, most)
		}
	}
	var list []layers.Entry
	count("a listing of 1,000 names", 2, func() (err error) { list, err = l.ReadDir(soon(t), ""); return err })
	if len(list) != 1000 || !list[0].Attr.Has(layers.KnownIno|layers.KnownCtime|layers.KnownNlink) {
		t.Errorf("%d names, %+v", len(list), list[0].Attr)
	}
	count("stat", 1, func() error { return second(l.Stat(soon(t), "f0001")) })
	count("xattrs", 1, func() error { return second(l.Xattrs(soon(t), "f0000")) })
	count("readlink of what is none", 1, func() error {
		_, err := l.Readlink(soon(t), "f0000")
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		return err
	})
}

// Handles of our own server can be predicted, as OpenSSH's can.
func TestPredictionOwnServer(t *testing.T) {
	dir := t.TempDir()
	var files []layers.Wanted
	for i := range 50 {
		name := fmt.Sprintf("f%d", i)
		write(t, filepath.Join(dir, name), name)
		files = append(files, layers.Wanted{Path: layers.Path(name)})
	}
	cfg := owned(dir, server.Config{})
	cfg.far = -1
	l := open(t, cfg)
	for i := range files {
		a, err := l.Stat(soon(t), files[i].Path)
		must(t, err)
		files[i].Attr = &a
	}
	for end := time.Now().Add(time.Minute); l.Stats().Predicted == 0; {
		if time.Now().After(end) {
			t.Fatalf("nothing was predicted: %+v", l.Stats())
		}
		got, err := l.ReadMany(soon(t), files)
		must(t, err)
		for i, c := range got {
			if c.Err != nil || string(c.Data) != string(files[i].Path) {
				t.Fatalf("%s: %q, %v", files[i].Path, c.Data, c.Err)
			}
		}
	}
}
