package main

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/seed"
)

func TestViewPaths(t *testing.T) {
	here := []string{"/srv", "/srv/a", "/home", "/home/u", "/var", "/var/lib", "/usr", "/usr/lib"}
	isDir := func(d string) bool { return slices.Contains(here, d) }
	for _, c := range []struct {
		files string // those that end with / are directories
		want  string // "" is an error
	}{
		{"/srv/a/f", "/srv/a"},
		{"/srv/a/ /srv/a/f", "/srv/a"},
		{"/srv/b/c/f", "/srv"},
		{"/srv/f /srv/a/f /home/u/", "/home/u /srv"},
		{"/home/u/f /usr/lib/libc.so.6 /etc/passwd /proc/1 /dev/null", "/home/u"},
		{"/ /home/u/x/", "/home/u"},
		{"/usr/bin/x", " "},
		{"/f", ""},
		{"/data/f", ""},
		{"/data/", ""},
	} {
		var s seed.Seed
		for _, f := range strings.Fields(c.files) {
			e := seed.Entry{Path: layers.Path(strings.Trim(f, "/")), Mode: unix.S_IFREG}
			if strings.HasSuffix(f, "/") {
				e.Mode = unix.S_IFDIR
			}
			s.Entries = append(s.Entries, e)
		}
		theirs, ours := splitSystem(s)
		if len(theirs.Entries)+len(ours.Entries) != len(s.Entries) {
			t.Errorf("%s: %d files and %d of the system", c.files, len(theirs.Entries), len(ours.Entries))
		}
		got, err := viewPaths(theirs, isDir)
		if (err != nil) != (c.want == "") || err == nil && strings.Join(got, " ") != strings.TrimSpace(c.want) {
			t.Errorf("%s: %q, %v, want %q", c.files, got, err, c.want)
		}
		for _, d := range got {
			if first, _, _ := strings.Cut(d[1:], "/"); d == "/" || slices.Contains(systemDirs, layers.Path(first)) {
				t.Errorf("%s: the view is mounted over %q", c.files, d)
			}
		}
	}
	theirs, _ := splitSystem(seed.Seed{Dirs: []layers.Path{"run/x", "tmp/s"}})
	if _, err := viewPaths(theirs, isDir); err == nil || len(theirs.Dirs) != 1 {
		t.Errorf("directories of sockets: %q, %v", theirs.Dirs, err)
	}
}
