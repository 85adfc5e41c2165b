package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// client is the other end of a session.
type client struct {
	t    *testing.T
	in   *bufio.Reader
	out  io.WriteCloser
	next uint32
	end  chan error
}

// start serves cfg to a client that has said INIT.
func start(t *testing.T, cfg Config) *client {
	t.Helper()
	fromClient, toServer := io.Pipe()
	fromServer, toClient := io.Pipe()
	c := &client{t: t, in: bufio.NewReader(fromServer), out: toServer, end: make(chan error, 1)}
	go func() {
		err := Serve(context.Background(), fromClient, toClient, cfg)
		toClient.Close()
		fromClient.Close()
		c.end <- err
	}()
	t.Cleanup(func() { toServer.Close(); fromServer.Close() })
	c.send([]byte{0, 0, 0, 5, fxpInit, 0, 0, 0, 3})
	typ, b := c.packet()
	if typ != fxpVersion || binary.BigEndian.Uint32(b) != 3 {
		t.Fatalf("type %d, %q", typ, b)
	}
	return c
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.out.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) packet() (typ byte, body []byte) {
	c.t.Helper()
	typ, body, err := readAnswer(c.in)
	if err != nil {
		c.t.Fatal(err)
	}
	return typ, body
}

func readAnswer(r io.Reader) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > maxPacket {
		return 0, nil, fmt.Errorf("an answer of %d bytes", n)
	}
	b := make([]byte, n-1)
	_, err := io.ReadFull(r, b)
	return head[4], b, err
}

// encode makes a packet of strings, uint32s and uint64s.
func encode(typ byte, id uint32, fields ...any) []byte {
	b := u32([]byte{0, 0, 0, 0, typ}, id)
	for _, f := range fields {
		switch v := f.(type) {
		case string:
			b = str(b, v)
		case uint32:
			b = u32(b, v)
		case uint64:
			b = u64(b, v)
		case []byte:
			b = append(b, v...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// ask sends one request and returns its answer.
func (c *client) ask(typ byte, fields ...any) (byte, *decoder) {
	c.t.Helper()
	c.next++
	c.send(encode(typ, c.next, fields...))
	answer, b := c.packet()
	d := &decoder{extension.Decoder{B: b}}
	if id := d.U32(); id != c.next {
		c.t.Fatalf("answer to %d, want %d", id, c.next)
	}
	return answer, d
}

// want is ask for an answer of a type.
func (c *client) want(answer, typ byte, fields ...any) *decoder {
	c.t.Helper()
	got, d := c.ask(typ, fields...)
	if got != answer {
		code := uint32(0)
		if got == fxpStatus {
			code = d.U32()
		}
		c.t.Fatalf("request %d %q: answer of type %d, want %d (code %d, %q)", typ, fields, got, answer, code, d.B)
	}
	return d
}

// code is ask for a STATUS.
func (c *client) code(want uint32, typ byte, fields ...any) {
	c.t.Helper()
	got, d := c.ask(typ, fields...)
	if code := d.U32(); got != fxpStatus || code != want {
		c.t.Errorf("request %d %q: type %d, code %d (%q), want code %d", typ, fields, got, code, d.B, want)
	}
}

func (c *client) whole() { c.t.Helper(); c.code(fxOK, fxpExtended, extension.Attrs) }

// attrs decodes an ATTRS structure as a client does.
func attrs(t *testing.T, d *decoder) layers.Attr {
	t.Helper()
	a := layers.Attr{}
	flags := d.U32()
	a.Size = int64(d.U64())
	a.UID, a.GID, a.Mode = d.U32(), d.U32(), d.U32()
	a.Atime.Sec, a.Mtime.Sec = int64(d.U32()), int64(d.U32())
	if flags&attrExtended != 0 {
		if n, name := d.U32(), d.Str(); n != 1 || name != extension.StatPair {
			t.Fatalf("%d pairs, %q", n, name)
		}
		if !extension.DecodeStat(d.Bytes(), &a) {
			t.Fatal("malformed statx pair")
		}
	}
	if d.Bad {
		t.Fatal("short attributes")
	}
	return a
}

func write(t *testing.T, name string, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempDir is a directory whose path has no symlink in it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	return dir
}

func (c *client) open(path string, flags uint32) string {
	c.t.Helper()
	return c.want(fxpHandle, fxpOpen, path, flags, uint32(0)).Str()
}

func (c *client) read(handle string, off uint64, n uint32) string {
	c.t.Helper()
	return c.want(fxpData, fxpRead, handle, off, n).Str()
}

// list reads a directory to its end.
func (c *client) list(handle string) (names []string, all map[string]layers.Attr) {
	c.t.Helper()
	all = make(map[string]layers.Attr)
	for {
		typ, d := c.ask(fxpReaddir, handle)
		if typ == fxpStatus {
			if code := d.U32(); code != fxEOF {
				c.t.Fatalf("READDIR: code %d, %q", code, d.B)
			}
			return names, all
		}
		for range d.U32() {
			name := d.Str()
			d.Str()
			names, all[name] = append(names, name), attrs(c.t, d)
		}
	}
}

func TestReadAndList(t *testing.T) {
	dir := tempDir(t)
	content := make([]byte, 300_000)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	write(t, dir+"/f", string(content))
	for i := range 2000 {
		write(t, fmt.Sprintf("%s/n%04d", dir, i), "")
	}
	for _, whole := range []bool{false, true} {
		c := start(t, Config{})
		if whole {
			c.whole()
		}
		h := c.open(dir+"/f", openRead)
		if got := c.read(h, 0, 1000) + c.read(h, 1000, 1<<20); got != string(content[:1000+maxData]) {
			t.Errorf("%d bytes differ", len(got))
		}
		if got := c.read(h, 299_990, 100); got != string(content[299_990:]) {
			t.Errorf("at the end: %d bytes", len(got))
		}
		c.code(fxEOF, fxpRead, h, uint64(300_000), uint32(1))
		c.code(fxEOF, fxpRead, h, uint64(1<<63), uint32(1))
		c.code(fxOK, fxpClose, h)
		c.code(fxNoSuchFile, fxpClose, h)
		if again := c.open(dir+"/f", openRead); again != h {
			t.Errorf("handle %q, want %q once more", again, h)
		}
		names, all := c.list(c.want(fxpHandle, fxpOpendir, dir).Str())
		if len(names) != 2003 || len(all) != 2003 || all["f"].Size != 300_000 || all["n1999"].Mode != unix.S_IFREG|0o644 {
			t.Errorf("%d names, f %+v", len(all), all["f"])
		}
		if a := all["f"]; a.Has(layers.KnownIno) != whole {
			t.Errorf("whole is %v, inode %d", whole, a.Ino)
		}
	}
}

// What statx(2) says comes across whole.
func TestAttributes(t *testing.T) {
	dir := tempDir(t)
	write(t, dir+"/f", "text")
	must(t, os.Link(dir+"/f", dir+"/g"))
	c := start(t, Config{Dir: dir})
	c.whole()
	when := time.Unix(1_500_000_000, 123_456_789)
	var a layers.Attr
	for soon := false; !soon; { // or nothing can be said of what was changed this moment
		began := time.Now()
		must(t, os.Chtimes(dir+"/f", when, when))
		a = attrs(t, c.want(fxpAttrs, fxpLstat, dir+"/f"))
		soon = time.Since(began) < tick/2
	}
	var st unix.Stat_t
	must(t, unix.Lstat(dir+"/f", &st))
	if a.Ino != st.Ino || a.Dev != st.Dev || a.Nlink != 2 || a.Blocks != st.Blocks || a.Ctime.Nsec != uint32(st.Ctim.Nsec) {
		t.Errorf("%+v, want %+v", a, st)
	}
	if a.Mtime != (layers.Time{Sec: 1_500_000_000, Nsec: 123_456_789}) || !a.Has(layers.KnownBtime|layers.KnownBare) {
		t.Errorf("%+v", a)
	}
	if a.Has(layers.KnownSettled) {
		t.Error("what was changed this moment is settled")
	}
	time.Sleep(3 * tick)
	if a = attrs(t, c.want(fxpAttrs, fxpLstat, dir+"/f")); !a.Has(layers.KnownSettled) {
		t.Error("what was changed a while ago is not settled")
	}
	must(t, unix.Setxattr(dir+"/f", "user.note", []byte("v"), 0))
	if a = attrs(t, c.want(fxpAttrs, fxpStat, dir+"/f")); a.Has(layers.KnownBare) {
		t.Error("a file with an attribute has none")
	}
	d := c.want(fxpExtendedReply, fxpExtended, "statvfs@openssh.com", dir)
	for range 11 {
		d.U64()
	}
	must(t, unix.Lstat(dir, &st))
	if ino := d.U64(); ino != st.Ino {
		t.Errorf("statvfs says inode %d, want %d", ino, st.Ino)
	}
}

// Nothing outside of the directory can be reached, by any request.
func TestConfined(t *testing.T) {
	top := tempDir(t)
	dir, out := top+"/in", top+"/out"
	must(t, os.MkdirAll(dir+"/sub", 0o755))
	must(t, os.Mkdir(out, 0o755))
	write(t, out+"/secret", "secret")
	write(t, dir+"/f", "text")
	for name, target := range map[string]string{
		"abs": out + "/secret", "rel": "../out/secret", "dir": "../out", "absdir": out, "home": dir + "/f", "ok": "sub/../f", "proc": "/proc/self/root",
	} {
		must(t, os.Symlink(target, dir+"/"+name))
	}
	c := start(t, Config{Dir: dir})
	for _, p := range []string{
		out + "/secret", "/", "/etc/passwd", top, dir + "/../out/secret", "../out/secret", dir + "/sub/../../out/secret", dir + "x",
		dir + "/abs", dir + "/rel", dir + "/dir/secret", dir + "/absdir/secret", dir + "/home", dir + "/proc/etc/passwd",
	} {
		c.code(fxPermissionDenied, fxpOpen, p, uint32(openRead), uint32(0))
		c.code(fxPermissionDenied, fxpStat, p)
		c.code(fxPermissionDenied, fxpRealpath, p)
		c.code(fxPermissionDenied, fxpOpendir, p)
		c.code(fxPermissionDenied, fxpSetstat, p, uint32(attrMode), uint32(0o777))
		c.code(fxPermissionDenied, fxpOpen, p, uint32(openWrite|openTrunc), uint32(0))
	}
	for _, p := range []string{out + "/new", dir + "/../out/new", dir + "/dir/new", dir + "/absdir/new", dir} {
		if p != dir {
			c.code(fxPermissionDenied, fxpOpen, p, uint32(openWrite|openCreate), uint32(0))
			c.code(fxPermissionDenied, fxpLstat, p+"/x")
		}
		c.code(fxPermissionDenied, fxpMkdir, p, uint32(0))
		c.code(fxPermissionDenied, fxpSymlink, "x", p)
		c.code(fxPermissionDenied, fxpRename, dir+"/f", p)
		c.code(fxPermissionDenied, fxpRename, p, dir+"/g")
		c.code(fxPermissionDenied, fxpExtended, "hardlink@openssh.com", dir+"/f", p)
		c.code(fxPermissionDenied, fxpExtended, "posix-rename@openssh.com", dir+"/f", p)
		c.code(fxPermissionDenied, fxpRemove, p)
		c.code(fxPermissionDenied, fxpRmdir, p)
	}
	for _, ext := range [][]any{
		{extension.Get, uint64(0), uint32(9)}, {extension.Hash, extension.SHA256, uint64(0), uint64(9)}, {extension.Xattrs, uint32(0)}, {extension.Tree, uint32(9)},
	} {
		for _, p := range []string{out + "/secret", dir + "/abs", dir + "/rel", dir + "/dir/secret", dir + "/ok", dir + "/../out/secret"} {
			got, _ := c.ask(fxpExtended, append([]any{ext[0], p}, ext[1:]...)...)
			// A symlink itself has attributes.
			if got != fxpStatus && (ext[0] != extension.Xattrs || strings.Count(p, "/") != strings.Count(dir, "/")+1) {
				t.Errorf("%s of %q: type %d", ext[0], p, got)
			}
		}
	}
	if got := c.read(c.open(dir+"/ok", openRead), 0, 9); got != "text" {
		t.Errorf("a symlink that stays inside leads to %q", got)
	}
	for p, want := range map[string]string{".": dir, "": dir, "sub": dir + "/sub", dir + "/ok": dir + "/f", dir + "/none": dir + "/none", "f": dir + "/f", dir + "//sub/": dir + "/sub"} {
		d := c.want(fxpName, fxpRealpath, p)
		if n, got := d.U32(), d.Str(); n != 1 || got != want {
			t.Errorf("real path of %q: %q, want %q", p, got, want)
		}
	}
	names, err := os.ReadDir(out)
	if err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
	if b, err := os.ReadFile(out + "/secret"); err != nil || string(b) != "secret" {
		t.Errorf("%q, %v", b, err)
	}
}

// With -R every request that could change something is refused, and changes nothing.
func TestReadOnly(t *testing.T) {
	dir := tempDir(t)
	write(t, dir+"/f", "text")
	var was unix.Stat_t
	must(t, unix.Stat(dir+"/f", &was))
	c := start(t, Config{Dir: dir, ReadOnly: true})
	h := c.open(dir+"/f", openRead)
	f, g := dir+"/f", dir+"/g"
	for _, q := range [][]any{
		{fxpOpen, f, uint32(openWrite), uint32(0)},
		{fxpOpen, f, uint32(openRead | openTrunc), uint32(0)},
		{fxpOpen, g, uint32(openRead | openCreate), uint32(0)},
		{fxpOpen, f, uint32(openRead | openAppend), uint32(0)},
		{fxpWrite, h, uint64(0), "x"},
		{fxpSetstat, f, uint32(attrSize), uint64(0)},
		{fxpSetstat, f, uint32(attrMode), uint32(0)},
		{fxpFsetstat, h, uint32(attrTimes), uint32(1), uint32(1)},
		{fxpRemove, f}, {fxpRmdir, dir}, {fxpMkdir, g, uint32(0)}, {fxpSymlink, f, g}, {fxpRename, f, g},
		{fxpExtended, "posix-rename@openssh.com", f, g},
		{fxpExtended, "hardlink@openssh.com", f, g},
		{fxpExtended, "fsync@openssh.com", h},
		{fxpExtended, "lsetstat@openssh.com", f, uint32(attrTimes), uint32(1), uint32(1)},
	} {
		typ, ok := q[0].(int)
		if !ok {
			t.Fatal(q)
		}
		c.code(fxPermissionDenied, byte(typ), q[1:]...)
	}
	var is unix.Stat_t
	must(t, unix.Stat(f, &is))
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || is.Mode != was.Mode || is.Mtim != was.Mtim || is.Size != was.Size || is.Nlink != was.Nlink {
		t.Errorf("%v, %v: %+v, was %+v", names, err, is, was)
	}
	if got := c.read(h, 0, 9); got != "text" {
		t.Errorf("%q", got)
	}
}

func TestChanges(t *testing.T) {
	dir := tempDir(t)
	c := start(t, Config{Dir: dir})
	content := func(name, want string) {
		t.Helper()
		if b, err := os.ReadFile(dir + "/" + name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
	h := c.want(fxpHandle, fxpOpen, "f", uint32(openRead|openWrite|openCreate|openExcl), uint32(attrMode), uint32(0o640)).Str()
	c.code(fxOK, fxpWrite, h, uint64(0), "hello")
	c.code(fxOK, fxpWrite, h, uint64(5), " world")
	c.code(fxOK, fxpExtended, "fsync@openssh.com", h)
	content("f", "hello world")
	c.code(fxFailure, fxpOpen, "f", uint32(openWrite|openCreate|openExcl), uint32(0))
	a := c.open("f", openWrite|openAppend)
	c.code(fxOK, fxpWrite, a, uint64(0), "!")
	content("f", "hello world!")
	c.code(fxOK, fxpFsetstat, h, uint32(attrSize), uint64(5))
	content("f", "hello")
	c.code(fxOK, fxpSetstat, "f", uint32(attrSize|attrMode|attrTimes), uint64(4), uint32(0o600), uint32(11), uint32(22))
	var st unix.Stat_t
	must(t, unix.Stat(dir+"/f", &st))
	if st.Size != 4 || st.Mode != unix.S_IFREG|0o600 || st.Atim.Sec != 11 || st.Mtim.Sec != 22 {
		t.Errorf("%+v", st)
	}
	c.code(fxOK, fxpSymlink, "f", "link")
	if d := c.want(fxpName, fxpReadlink, "link"); d.U32() != 1 || d.Str() != "f" {
		t.Error("another target")
	}
	c.code(fxBadMessage, fxpReadlink, "f")
	c.code(fxOK, fxpExtended, "lsetstat@openssh.com", "link", uint32(attrTimes), uint32(5), uint32(6))
	must(t, unix.Lstat(dir+"/link", &st))
	if st.Mtim.Sec != 6 {
		t.Errorf("%+v", st)
	}
	c.code(fxOK, fxpMkdir, "d", uint32(attrMode), uint32(0o700))
	c.code(fxOK, fxpRename, "f", "d/g")
	content("d/g", "hell")
	c.code(fxOK, fxpExtended, "hardlink@openssh.com", "d/g", "d/h")
	c.code(fxFailure, fxpRename, "d/g", "d/h")
	c.code(fxOK, fxpClose, c.open("x", openWrite|openCreate|openTrunc))
	c.code(fxFailure, fxpRename, "x", "d/g")
	c.code(fxOK, fxpExtended, "posix-rename@openssh.com", "x", "d/g")
	content("d/g", "")
	content("d/h", "hell")
	c.code(fxFailure, fxpRmdir, "d")
	for _, n := range []string{"d/g", "d/h", "link"} {
		c.code(fxOK, fxpRemove, n)
	}
	c.code(fxOK, fxpRmdir, "d")
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

// FIFOs, devices, sockets and directories are never opened, and nothing hangs.
func TestOnlyRegular(t *testing.T) {
	dir := tempDir(t)
	must(t, unix.Mkfifo(dir+"/fifo", 0o666))
	must(t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Mkdir(dir+"/dir", 0o755))
	must(t, os.Symlink("fifo", dir+"/link"))
	c := start(t, Config{Dir: dir})
	for _, name := range []string{"fifo", "null", "dir", "link"} {
		for _, flags := range []uint32{openRead, openWrite, openRead | openWrite, openWrite | openCreate | openTrunc} {
			if typ, _ := c.ask(fxpOpen, name, flags, uint32(0)); typ != fxpStatus {
				t.Errorf("%s opens with flags %x", name, flags)
			}
		}
		if typ, _ := c.ask(fxpExtended, extension.Get, name, uint64(0), uint32(9)); typ != fxpStatus {
			t.Errorf("%s can be got", name)
		}
	}
	for _, name := range []string{"fifo", "null", "link"} {
		if typ, _ := c.ask(fxpOpendir, name); typ != fxpStatus {
			t.Errorf("%s opens as a directory", name)
		}
	}
}

func TestXattrs(t *testing.T) {
	dir := tempDir(t)
	write(t, dir+"/f", "")
	must(t, os.Symlink("f", dir+"/link"))
	want := map[string]string{"user.a": "1", "user.empty": "", "user.big": strings.Repeat("x", 3000)}
	for k, v := range want {
		must(t, unix.Setxattr(dir+"/f", k, []byte(v), 0))
	}
	c := start(t, Config{Dir: dir})
	got := make(map[string]string)
	d := c.want(fxpExtendedReply, fxpExtended, extension.Xattrs, "f", uint32(0))
	next, n := d.U32(), d.U32()
	for range n {
		name := d.Str()
		got[name] = d.Str()
	}
	if next != 0 || n != 3 || len(d.B) != 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d, next %d: %q", n, next, got)
	}
	d = c.want(fxpExtendedReply, fxpExtended, extension.Xattrs, "f", uint32(2))
	if next, n, name := d.U32(), d.U32(), d.Str(); next != 0 || n != 1 || name != "user.empty" {
		t.Errorf("%d, next %d, %q", n, next, name)
	}
	if d = c.want(fxpExtendedReply, fxpExtended, extension.Xattrs, "link", uint32(0)); d.U64() != 0 {
		t.Error("a symlink was followed")
	}
	c.code(fxNoSuchFile, fxpExtended, extension.Xattrs, "none", uint32(0))
}

func TestExtents(t *testing.T) {
	dir := tempDir(t)
	f, err := os.Create(dir + "/f")
	must(t, err)
	defer f.Close()
	for _, at := range []int64{1 << 20, 9 << 20} {
		_, err := f.WriteAt(make([]byte, 4096), at)
		must(t, err)
	}
	must(t, f.Truncate(20<<20))
	c := start(t, Config{Dir: dir})
	h := c.open("f", openRead)
	d := c.want(fxpExtendedReply, fxpExtended, extension.Extents, h, uint64(0))
	if end, n := d.U64(), d.U32(); end != extension.End || n != 2 {
		t.Fatalf("end %d, %d ranges", end, n)
	}
	for _, at := range []uint64{1 << 20, 9 << 20} {
		if off, n := d.U64(), d.U64(); off > at || off+n < at+4096 || n > 1<<20 {
			t.Errorf("%d bytes at %d, want 4096 at %d", n, off, at)
		}
	}
	d = c.want(fxpExtendedReply, fxpExtended, extension.Extents, h, uint64(10<<20))
	if end, n := d.U64(), d.U32(); end != extension.End || n != 0 {
		t.Errorf("end %d, %d ranges", end, n)
	}
}

func TestGetAndHash(t *testing.T) {
	dir := tempDir(t)
	content := strings.Repeat("0123456789", 1000)
	write(t, dir+"/f", content)
	c := start(t, Config{Dir: dir})
	c.whole()
	d := c.want(fxpExtendedReply, fxpExtended, extension.Get, "f", uint64(0), uint32(1<<30))
	if a := attrs(t, d); a.Size != 10_000 || !a.Has(layers.KnownIno) || d.Str() != content || len(d.B) != 0 {
		t.Errorf("%+v", a)
	}
	d = c.want(fxpExtendedReply, fxpExtended, extension.Get, "f", uint64(9_995), uint32(100))
	if attrs(t, d); d.Str() != "56789" {
		t.Error("another end")
	}
	d = c.want(fxpExtendedReply, fxpExtended, extension.Hash, "f", extension.SHA256, uint64(5), uint64(1000))
	sum := sha256.Sum256([]byte(content[5:1005]))
	if a, got := attrs(t, d), d.Str(); a.Size != 10_000 || got != string(sum[:]) {
		t.Errorf("%x, want %x", got, sum)
	}
	c.code(fxUnsupported, fxpExtended, extension.Hash, "f", "md5", uint64(0), uint64(1))
	c.code(fxBadMessage, fxpExtended, extension.Hash, "f", extension.SHA256, uint64(0), uint64(1<<60))
}

// A walk says of each directory where its listing begins and that it is complete.
func TestTree(t *testing.T) {
	dir := tempDir(t)
	for i := range 10 {
		d := fmt.Sprintf("%s/d%d/%s", dir, i, strings.Repeat("x", 200))
		must(t, os.MkdirAll(d, 0o755))
		for k := range 100 {
			write(t, fmt.Sprintf("%s/f%02d", d, k), "x")
		}
	}
	must(t, os.Symlink("d0", dir+"/link"))
	c := start(t, Config{Dir: dir})
	c.whole()
	for depth, want := range map[uint32]int{1: 11 + 2, 2: 11 + 2 + 10*(1+2), 9: 11 + 2 + 10*(1+2) + 10*(100+2)} {
		h := c.want(fxpHandle, fxpExtended, extension.Tree, dir, depth).Str()
		names, all := c.list(h)
		if len(names) != want || len(all) != want {
			t.Errorf("depth %d: %d names, want %d", depth, len(names), want)
		}
		if names[0] != "." || all["."].Mode&unix.S_IFMT != unix.S_IFDIR || all[".."].Mode == 0 {
			t.Errorf("depth %d begins with %q", depth, names[0])
		}
		if depth == 9 && all["d3/"+strings.Repeat("x", 200)+"/f42"].Size != 1 {
			t.Error("a file is missing")
		}
		if depth == 2 && (all["d3/.."].Mode == 0 || all["d3/"+strings.Repeat("x", 200)+"/."].Mode != 0) {
			t.Error("another depth")
		}
		c.code(fxOK, fxpClose, h)
	}
	c.code(fxNoSuchFile, fxpExtended, extension.Tree, "link", uint32(1))
	for range mostWalks {
		c.want(fxpHandle, fxpExtended, extension.Tree, "", uint32(1))
	}
	c.code(fxFailure, fxpExtended, extension.Tree, "", uint32(1))
}

// What a hostile client may try costs neither memory nor the session of others.
func TestHostile(t *testing.T) {
	dir := tempDir(t)
	write(t, dir+"/f", "text")
	t.Run("handles", func(t *testing.T) {
		c := start(t, Config{Dir: dir})
		most := handlesAllowed()
		for range most {
			c.open("f", openRead)
		}
		c.code(fxFailure, fxpOpen, "f", uint32(openRead), uint32(0))
		c.code(fxFailure, fxpOpendir, ".")
		c.code(fxOK, fxpClose, "\x00\x00\x00\x07")
		if h := c.open("f", openRead); h != "\x00\x00\x00\x07" {
			t.Errorf("%q", h)
		}
		for _, h := range []string{"", "x", "\xff\xff\xff\xff", strings.Repeat("h", 300)} {
			c.code(fxNoSuchFile, fxpRead, h, uint64(0), uint32(1))
			c.code(fxNoSuchFile, fxpClose, h)
		}
	})
	for name, b := range map[string][]byte{
		"huge packet":           {0xff, 0xff, 0xff, 0xff, fxpOpen},
		"no packet":             {0, 0, 0, 4, fxpOpen, 0, 0, 0},
		"second INIT":           {0, 0, 0, 5, fxpInit, 0, 0, 0, 3},
		"short OPEN":            encode(fxpOpen, 1, "f"),
		"short WRITE":           encode(fxpWrite, 1, "\x00\x00\x00\x00", uint64(0), uint32(1000)),
		"short extended":        encode(fxpExtended, 1, extension.Get, "f"),
		"a string that goes on": encode(fxpLstat, 1, []byte{0xff, 0xff, 0xff, 0xf0, 'f'}),
		"short REMOVE":          encode(fxpRemove, 1, []byte{0, 0, 0, 9, 'f'}),
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, Config{Dir: dir})
			c.send(b)
			if err := <-c.end; !errors.Is(err, errBadMessage) {
				t.Errorf("%v, want errBadMessage", err)
			}
		})
	}
	t.Run("unknown", func(t *testing.T) {
		c := start(t, Config{Dir: dir})
		c.code(fxUnsupported, 99)
		c.code(fxUnsupported, fxpExtended, "nonsense@example.com")
		c.code(fxBadMessage, fxpLstat, "f\x00g")
		c.code(fxBadMessage, fxpLstat, strings.Repeat("x/", 3000))
		c.code(fxBadMessage, fxpLstat, strings.Repeat("x", 300))
	})
	if b, err := os.ReadFile(dir + "/f"); err != nil || string(b) != "text" {
		t.Errorf("%q, %v", b, err)
	}
}

// Answers that nobody takes are not gathered: no more requests are read.
func TestBackPressure(t *testing.T) {
	dir := tempDir(t)
	write(t, dir+"/f", strings.Repeat("x", 1<<20))
	c := start(t, Config{Dir: dir})
	h := c.open("f", openRead)
	sent := make(chan int)
	go func() {
		n := 0
		for range 1000 {
			if _, err := c.out.Write(encode(fxpRead, 7, h, uint64(0), uint32(1<<20))); err != nil {
				break
			}
			n++
		}
		sent <- n
	}()
	got := 0
	for range 1000 {
		if typ, b := c.packet(); typ != fxpData || !bytes.HasPrefix(b[8:], []byte("xxxx")) || len(b) != 8+maxData {
			t.Fatalf("type %d, %d bytes", typ, len(b))
		}
		got++
	}
	if n := <-sent; n != got {
		t.Errorf("%d requests, %d answers", n, got)
	}
}

// FuzzServer: whatever a client sends, each answer is a packet, nothing outside of
// the directory is touched, and nothing panics.
func FuzzServer(f *testing.F) {
	for _, b := range [][]byte{
		encode(fxpOpen, 1, "f", uint32(openRead), uint32(0)),
		encode(fxpOpen, 1, "f", uint32(openRead|openWrite|openCreate), uint32(attrMode), uint32(0o600)),
		encode(fxpRead, 2, "\x00\x00\x00\x00", uint64(0), uint32(10)),
		encode(fxpWrite, 2, "\x00\x00\x00\x00", uint64(0), "text"),
		encode(fxpOpendir, 1, "."), encode(fxpReaddir, 2, "\x00\x00\x00\x00"),
		encode(fxpLstat, 1, "../x"), encode(fxpRealpath, 1, "link/.."), encode(fxpSymlink, 1, "..", "s"),
		encode(fxpSetstat, 1, "f", uint32(attrSize|attrTimes), uint64(9), uint32(1), uint32(2)),
		encode(fxpExtended, 1, extension.Attrs), encode(fxpExtended, 1, extension.Tree, ".", uint32(3)),
		encode(fxpExtended, 1, extension.Extents, "\x00\x00\x00\x00", uint64(0)),
		encode(fxpExtended, 1, extension.Xattrs, "f", uint32(0)),
		encode(fxpExtended, 1, extension.Get, "f", uint64(0), uint32(9)),
		encode(fxpExtended, 1, extension.Hash, "f", extension.SHA256, uint64(0), uint64(9)),
		encode(fxpExtended, 1, "users-groups-by-id@openssh.com", "\x00\x00\x00\x00", ""),
		encode(fxpExtended, 1, "expand-path@openssh.com", "~/x"),
		encode(fxpExtended, 1, "statvfs@openssh.com", "."),
		encode(fxpRename, 1, "f", "g"), encode(fxpExtended, 1, "hardlink@openssh.com", "f", "g"),
	} {
		f.Add(b)
		f.Add(append(encode(fxpExtended, 1, extension.Attrs), b...))
		f.Add(append(encode(fxpOpen, 1, "f", uint32(openRead|openWrite), uint32(0)), b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		top := t.TempDir()
		dir := top + "/in"
		must(t, os.Mkdir(dir, 0o755))
		write(t, dir+"/f", "text")
		must(t, os.Symlink("../out", dir+"/link"))
		write(t, top+"/out", "secret")
		in := io.MultiReader(bytes.NewReader([]byte{0, 0, 0, 5, fxpInit, 0, 0, 0, 3}), bytes.NewReader(b))
		var out bytes.Buffer
		_ = Serve(context.Background(), in, &out, Config{Dir: dir})
		for out.Len() > 0 {
			if _, _, err := readAnswer(&out); err != nil {
				t.Fatal(err)
			}
		}
		names, err := os.ReadDir(top)
		if err != nil || len(names) != 2 {
			t.Fatalf("%v, %v", names, err)
		}
		if b, err := os.ReadFile(top + "/out"); err != nil || string(b) != "secret" {
			t.Fatalf("%q, %v", b, err)
		}
	})
}
