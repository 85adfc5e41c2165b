package seed

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func imagesFake() *fake {
	f := newFake()
	f.nodes["home/images"] = layers.Attr{Mode: unix.S_IFDIR | 0o700}
	for p, s := range map[layers.Path]string{
		"home/images/inventory.img": "inventory", "home/images/core-7.img": "core", "home/images/pages-1.img": "many pages", "home/images/dump.log": "log",
	} {
		f.data[p] = s
		f.nodes[p] = layers.Attr{
			Known: layers.KnownTimes | layers.KnownSize, Mode: unix.S_IFREG | 0o600,
			Size: int64(len(s)), Mtime: layers.Time{Sec: 777},
		}
	}
	f.nodes["home/images/link"] = layers.Attr{Mode: unix.S_IFLNK | 0o777}
	f.nodes["home/images/fifo"] = layers.Attr{Mode: unix.S_IFIFO | 0o600}
	return f
}

func TestImages(t *testing.T) {
	f := imagesFake()
	im, err := OpenImages(t.Context(), f, "home/images")
	must(t, err)
	if got := names(t, im, ""); len(got) != 4 {
		t.Errorf("the directory lists %q: regular files are all that there is", got)
	}
	if got := read(t, im, "core-7.img"); got != "core" {
		t.Errorf("read %q", got)
	}
	for _, p := range []layers.Path{"home/images/core-7.img", "link", "../u/f", "none"} {
		if _, err := im.Stat(t.Context(), p); !errors.Is(err, unix.ENOENT) {
			t.Errorf("Stat(%q): %v", p, err)
		}
	}
	if im.Made() != (layers.Time{Sec: 777}) {
		t.Errorf("made at %v", im.Made())
	}
	b, err := fs.ReadFile(im.FS(t.Context()), "pages-1.img")
	if err != nil || string(b) != "many pages" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := fs.Stat(im.FS(t.Context()), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of what is not there: %v", err)
	}
	// Another version of an image is not this checkpoint's.
	a := f.nodes["home/images/pages-1.img"]
	a.Mtime.Sec++
	f.nodes["home/images/pages-1.img"] = a
	if _, err := im.Open(t.Context(), "pages-1.img", nil); !errors.Is(err, layers.ErrStale) {
		t.Errorf("Open of an image that changed: %v", err)
	}
}

func TestNoImages(t *testing.T) {
	f := imagesFake()
	for _, p := range []layers.Path{"home/none", "home/u/f"} {
		if _, err := OpenImages(t.Context(), f, p); err == nil {
			t.Errorf("%q is a checkpoint", p)
		}
	}
	f.nodes["home/images/parent"] = layers.Attr{Mode: unix.S_IFLNK | 0o777}
	if _, err := OpenImages(t.Context(), f, "home/images"); err == nil {
		t.Error("an incremental checkpoint is taken for a whole one")
	}
}
