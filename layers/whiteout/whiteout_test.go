package whiteout

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func TestNames(t *testing.T) {
	for _, c := range []struct{ shown, disk string }{
		{"user.note", "user.note"},
		{"trusted.other", "trusted.other"},
		{"trusted.overlay.opaque", "trusted.overlay.overlay.opaque"},
		{"trusted.overlay.overlay.opaque", "trusted.overlay.overlay.overlay.opaque"},
		{"user.overlay.opaque", "user.overlay.opaque"}, // of the other format: not ours
	} {
		if got := Trusted.ToDisk(c.shown); got != c.disk {
			t.Errorf("ToDisk(%q) = %q, want %q", c.shown, got, c.disk)
		}
		if got, ok := Trusted.FromDisk(c.disk); !ok || got != c.shown {
			t.Errorf("FromDisk(%q) = %q, %v, want %q", c.disk, got, ok, c.shown)
		}
	}
	if got, ok := Trusted.FromDisk("trusted.overlay.opaque"); ok {
		t.Errorf("the overlay's own xattr is shown, as %q", got)
	}
}

func TestIs(t *testing.T) {
	for _, c := range []struct {
		mode uint32
		rdev uint64
		want bool
	}{
		{unix.S_IFCHR, 0, true},
		{unix.S_IFCHR | 0o600, 0, true},
		{unix.S_IFCHR, unix.Mkdev(1, 3), false},
		{unix.S_IFBLK, 0, false},
		{unix.S_IFREG, 0, false},
	} {
		a := layers.Attr{Mode: c.mode, Rdev: c.rdev}
		if Is(&a) != c.want {
			t.Errorf("mode %o, device %#x: %v, want %v", c.mode, c.rdev, Is(&a), c.want)
		}
	}
}
