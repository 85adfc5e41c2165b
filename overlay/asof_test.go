package overlay

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// dated is a source that answers with what it had some time ago.
type dated struct {
	layers.Layer
	age time.Duration
}

func (l *dated) said(ctx context.Context) { layers.AnsweredAsOf(ctx, time.Now().Add(-l.age)) }

func (l *dated) ID() string { return "dated" }

func (l *dated) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	l.said(ctx)
	switch p {
	case "":
		return layers.Attr{Mode: unix.S_IFDIR | 0o755}, nil
	case "file":
		return layers.Attr{Mode: unix.S_IFREG | 0o644, Known: layers.KnownSize}, nil
	}
	return layers.Attr{}, unix.ENOENT
}

func (l *dated) ReadDir(ctx context.Context, _ layers.Path) ([]layers.Entry, error) {
	l.said(ctx)
	return []layers.Entry{{Name: "file", Type: unix.S_IFREG, Attr: &layers.Attr{Mode: unix.S_IFREG | 0o644}}}, nil
}

func (l *dated) Close() error { return nil }

// TestAgeIsTold: of what a source had some time ago the kernel is told what is left of
// the time that it may believe it, in each kind of answer.
func TestAgeIsTold(t *testing.T) {
	l := &dated{}
	timeout := 1000 * time.Second
	fs, err := New(context.Background(), Config{
		Lowers:       []Lower{{Layer: l, Changes: true}},
		EntryTimeout: &timeout, AttrTimeout: &timeout, Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	defer fs.Close()
	head := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	left := func() map[string]time.Duration {
		var found, absent fuse.EntryOut
		var attr fuse.AttrOut
		if s := fs.Lookup(nil, &head, "file", &found); !s.Ok() {
			t.Fatal(s)
		}
		if s := fs.Lookup(nil, &head, "absent", &absent); !s.Ok() || absent.NodeId != 0 {
			t.Fatal(s)
		}
		if s := fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: head}, &attr); !s.Ok() {
			t.Fatal(s)
		}
		return map[string]time.Duration{
			"name": found.EntryTimeout(), "attributes with it": found.AttrTimeout(),
			"no name": absent.EntryTimeout(), "attributes": time.Duration(attr.AttrValid)*time.Second + time.Duration(attr.AttrValidNsec),
		}
	}
	for what, d := range left() {
		if d < 900*time.Second || d > timeout {
			t.Errorf("%s of now: %v", what, d)
		}
	}
	l.age = 700 * time.Second
	for what, d := range left() {
		if d < 200*time.Second || d > 300*time.Second {
			t.Errorf("%s of 700 s ago: %v are left", what, d)
		}
	}
	l.age = time.Hour
	for what, d := range left() {
		if d != 0 {
			t.Errorf("%s of an hour ago: %v are left", what, d)
		}
	}

	// A listing tells of the time when it was made, however long it is read.
	l.age = 400 * time.Second
	var opened fuse.OpenOut
	if s := fs.OpenDir(nil, &fuse.OpenIn{InHeader: head}, &opened); !s.Ok() {
		t.Fatal(s)
	}
	h := fs.handles.get(opened.Fh).(*dirHandle)
	for _, off := range []uint64{0, offDotDot} {
		r := begin(nil, 0)
		_, err := fs.entries(r, h, off)
		must(t, err)
		if d := r.left(timeout); d < 500*time.Second || d > 600*time.Second {
			t.Errorf("a listing of 400 s ago, from %d on: %v are left", off, d)
		}
		r.end()
	}
}
