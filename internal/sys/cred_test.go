package sys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: takes other users' rights")
	}
}

// Rights nest, and each call gives back what it found.
func TestAsNests(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	mk := func(name string) error { return Mkdir(fd, name, 0o700) }
	before, err := current()
	must(t, err)
	must(t, As(Cred{UID: 1000, GID: 1001, Groups: []uint32{7, 8}}, func() error {
		must(t, mk("user"))
		must(t, AsSelf(func() error {
			must(t, mk("self"))
			return As(Cred{UID: 1002, GID: 1002}, func() error { return mk("other") })
		}))
		c, err := current()
		if err != nil || c.UID != 1000 || c.GID != 1001 || !slices.Equal(c.Groups, []uint32{7, 8}) {
			t.Errorf("%+v, %v after what was within", c, err)
		}
		return mk("again")
	}))
	after, err := current()
	if err != nil || after.UID != before.UID || after.GID != before.GID || !slices.Equal(after.Groups, before.Groups) {
		t.Errorf("%+v, %v, want %+v", after, err, before)
	}
	for name, want := range map[string][2]uint32{"user": {1000, 1001}, "self": {0, 0}, "other": {1002, 1002}, "again": {1000, 1001}} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, name), &st))
		if [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s belongs to %d:%d, want %v", name, st.Uid, st.Gid, want)
		}
	}
}

// What would have to be done with rights that cannot be had is not done.
func TestAsFailsClosed(t *testing.T) {
	needRoot(t)
	SetHook(func(c Change) error {
		if c == "switch" {
			return unix.ENOMEM
		}
		return nil
	})
	defer SetHook(nil)
	for _, c := range []Cred{{UID: 1000, GID: 1000}, {}} {
		ran := false
		if err := As(c, func() error { ran = true; return nil }); !errors.Is(err, unix.ENOMEM) || ran {
			t.Errorf("%v: %v, ran: %v", c, err, ran)
		}
	}
	SetHook(nil)
	// An id that is none, as of somebody whom no namespace maps.
	ran := false
	if err := As(Cred{UID: ^uint32(0), GID: 1000}, func() error { ran = true; return nil }); err == nil || ran {
		t.Errorf("%v, ran: %v", err, ran)
	}
}

// Groups are those of who asks, and of nobody who asks for another.
func TestGroupsOf(t *testing.T) {
	pid := uint32(os.Getpid())
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	all, err := unix.Getgroups()
	must(t, err)
	if got := GroupsOf(pid, uid, gid); len(got) != len(all) {
		t.Errorf("%v, want %v", got, all)
	}
	for _, other := range [][3]uint32{{0, uid, gid}, {pid, uid + 1, gid}, {pid, uid, gid + 1}, {1 << 30, uid, gid}} {
		if got := GroupsOf(other[0], other[1], other[2]); got != nil {
			t.Errorf("%v has groups %v", other, got)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
