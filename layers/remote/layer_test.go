package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// What DESIGN counts: how many exchanges each operation takes on a real server.
func TestRoundTrips(t *testing.T) {
	s, dir, data := serve(t, 300_000)
	l := open(t, s.layer(dir))
	ctx := soon(t)
	count := func(what string, want int64, f func()) {
		t.Helper()
		before := l.Stats().Bursts
		f()
		if got := l.Stats().Bursts - before; got != want {
			t.Errorf("%s takes %d exchanges, want %d", what, got, want)
		}
	}
	var a layers.Attr
	var f layers.File
	var err error
	count("stat", 1, func() { a, err = l.Stat(ctx, "f") })
	must(t, err)
	count("stat of what is not there", 1, func() { _, err = l.Stat(ctx, "none") })
	if !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	count("stat of many", 1, func() { _, _, err = l.StatMany(ctx, []layers.Path{"f", "none", ""}) })
	must(t, err)
	count("stat of many, one below a file", 2, func() { _, _, err = l.StatMany(ctx, []layers.Path{"f", "none", "", "f/x"}) })
	must(t, err)
	count("open", 1, func() { f, err = l.Open(ctx, "f", &a) })
	must(t, err)
	got := make([]byte, len(data))
	count("read", 1, func() { _, err = f.ReadAt(ctx, got, 0) })
	must(t, err)
	if !bytes.Equal(got, data) {
		t.Error("content differs")
	}
	count("close", 0, func() { err = f.Close() })
	must(t, err)
	if n := l.Stats().BytesRead; n != int64(len(data)) {
		t.Errorf("%d bytes read", n)
	}
	list, err := l.ReadDir(ctx, "")
	if err != nil || len(list) != 1 || list[0].Name != "f" || list[0].Attr == nil || list[0].Attr.Nlink != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}

// The same on lanes of a real server: what one exchange is enough for.
func TestRoundTripsPredicted(t *testing.T) {
	for _, server := range []string{sftpServer(t), "internal-sftp"} {
		s, dir := startSSHD(t, "Subsystem sftp "+server), t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "large"), 0o755))
		must(t, os.Mkdir(filepath.Join(dir, "small"), 0o755))
		data := make(map[string][]byte)
		for i := range 1000 {
			must(t, os.WriteFile(filepath.Join(dir, "large", fmt.Sprint("a rather long name, ", i)), nil, 0o644))
		}
		for i := range 256 {
			name := fmt.Sprintf("%03d", i)
			data[name] = random(uint64(i), i*50)
			must(t, os.WriteFile(filepath.Join(dir, "small", name), data[name], 0o644))
			must(t, os.Chtimes(filepath.Join(dir, "small", name), time.Unix(1000, 0), time.Unix(1000, 0)))
		}
		l := open(t, s.layer(dir))
		withLanes(t, l)
		var list []layers.Entry
		var err error
		trips(t, l, "ls -l of 1,000", 1, func() { list, err = l.ReadDir(soon(t), "large") })
		if err != nil || len(list) != 1000 || list[0].Attr == nil {
			t.Errorf("%d names, %v", len(list), err)
		}
		list, err = l.ReadDir(soon(t), "small")
		must(t, err)
		var files []layers.Wanted
		for _, e := range list {
			files = append(files, layers.Wanted{Path: layers.Path("small").Join(e.Name), Attr: e.Attr})
		}
		var got []layers.Content
		for _, ctx := range []context.Context{soon(t), layers.Background(soon(t))} {
			trips(t, l, "256 files", 1, func() { got, err = l.ReadMany(ctx, files) })
			must(t, err)
			for i, c := range got {
				if c.Err != nil || !c.Settled || !bytes.Equal(c.Data, data[list[i].Name]) {
					t.Fatalf("%q: %d bytes, %v", list[i].Name, len(c.Data), c.Err)
				}
			}
		}
		var f layers.File
		b := make([]byte, 50*200)
		trips(t, l, "open and read", 1, func() {
			for i := range list {
				if list[i].Name == "200" {
					if f, err = l.Open(soon(t), "small/200", list[i].Attr); err == nil {
						_, err = f.ReadAt(soon(t), b, 0)
					}
				}
			}
		})
		if err != nil || !bytes.Equal(b, data["200"]) {
			t.Error(err)
		}
		must(t, f.Close())
	}
}

// A file that was changed a moment ago may change again unseen.
func TestSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.files["/src/g"].mtime = uint32(time.Now().Unix())
		l := f.open(t)
		for p, want := range map[layers.Path]bool{"f": true, "g": false} {
			file, err := l.Open(soon(t), p, nil)
			must(t, err)
			if got := file.(*File).Settled(); got != want {
				t.Errorf("%q: settled is %v, want %v", p, got, want)
			}
			// Two seconds later; but not what was read before.
			late := file.(*File)
			late.attr.Mtime.Sec -= settleTime
			if !late.Settled() {
				t.Errorf("%q has not settled two seconds later", p)
			}
			late.whole = make([]byte, late.attr.Size)
			l.carried.add(late)
			if got := late.Settled(); got != want {
				t.Errorf("%q, read when it was opened: settled is %v, want %v", p, got, want)
			}
		}
	})
}

// Owners can be replaced; what was looked up so opens so.
func TestSquash(t *testing.T) {
	f := newFake()
	uid, gid := uint32(1000), uint32(2000)
	l := f.open(t, func(c *Config) { c.UID, c.GID = &uid, &gid })
	a, err := l.Stat(soon(t), "f")
	must(t, err)
	list, err := l.ReadDir(soon(t), "")
	must(t, err)
	for _, a := range []*layers.Attr{&a, list[0].Attr, list[1].Attr} {
		if a.UID != uid || a.GID != gid {
			t.Errorf("owner %d:%d", a.UID, a.GID)
		}
	}
	file, err := l.Open(soon(t), "f", &a)
	must(t, err)
	b := make([]byte, 10)
	if n, err := file.ReadAt(soon(t), b, 0); err != nil || !bytes.Equal(b[:n], f.files["/src/f"].data[:10]) {
		t.Error(err)
	}
}

// A source that is slow, but answers, is not away, however long it takes.
func TestSlowIsNotAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := f.open(t, func(c *Config) { c.Timeout = 800 * time.Millisecond })
		names := 0
		f.set(func() {
			f.lie = func(q *query) ([]byte, bool) {
				if q.typ != fxpReaddir || names == 12 {
					return nil, false
				}
				time.Sleep(100 * time.Millisecond)
				names++
				return packet(fxpName, q.id, cat(u32(1), listed(fmt.Sprint(names), "", f.files["/src/f"]))), true
			}
		})
		list, err := l.ReadDir(soon(t), "")
		if err != nil || len(list) != 12+2 {
			t.Errorf("%d names, %v", len(list), err)
		}
	})
}
