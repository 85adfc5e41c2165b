package criu

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/seed"
)

// images are the files that a Load reads, by the name they have in testdata
// without their number.
var images = []string{
	"inventory", "pstree", "core", "ids", "files", "reg-files", "unixsk", "inotify",
	"remap-fpath", "fdinfo", "fs", "mm", "mountpoints", "pagemap", "ghost-file", "filelocks", "tty-info",
	"fifo", "tty", "inetsk", "ext-files", "fanotify", "vmas",
}

// FuzzLoad replaces one image of a good checkpoint. Whatever it holds, Load must
// return, with an error or with names that are safe to use.
func FuzzLoad(f *testing.F) {
	sets := map[string]fstest.MapFS{}
	seeds := []string{"plain", "old", "container", "kinds", "mounts"}
	for n, dir := range seeds {
		sets[dir] = golden(f, dir)
		for name, file := range sets[dir] {
			kind := strings.TrimRight(strings.TrimSuffix(name, ".img"), "0123456789")
			for i, k := range images {
				if strings.TrimRight(kind, "-") == k {
					f.Add(byte(i), byte(n), file.Data)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, which, set byte, data []byte) {
		dir := seeds[int(set)%len(seeds)]
		m := fstest.MapFS{}
		want := images[int(which)%len(images)]
		for name, file := range sets[dir] {
			kind := strings.TrimRight(strings.TrimRight(strings.TrimSuffix(name, ".img"), "0123456789"), "-")
			if kind == want {
				file = &fstest.MapFile{Data: data, Mode: 0o600}
			}
			m[name] = file
		}
		if _, there := m[want+".img"]; !there && want != "files" { // one that only older ones have
			m[want+".img"] = &fstest.MapFile{Data: data, Mode: 0o600}
		}
		c, err := LoadFS(m, "images")
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("error %q is not one line of text", err)
			}
			return
		}
		checkSafe(t, c)
	})
}

// checkSafe: nothing of c leads out of a layer.
func checkSafe(t *testing.T, c *Checkpoint) {
	t.Helper()
	for _, f := range c.Files {
		if f.Path != filepath.Clean(f.Path) || !filepath.IsAbs(f.Path) || strings.Contains(f.Path, "\x00") {
			t.Errorf("path %q", f.Path)
		}
		for _, p := range []string{f.TreePath, f.HostPath} {
			if p != "" && (p != filepath.Clean(p) || !filepath.IsAbs(p) || strings.Contains(p, "\x00")) {
				t.Errorf("%q lies at %q", f.Path, p)
			}
		}
		if f.Size < 0 {
			t.Errorf("%q has size %d", f.Path, f.Size)
		}
	}
	s := c.Seed()
	for _, e := range s.Entries {
		if !e.Path.Valid() {
			t.Errorf("seed path %q", e.Path)
		}
	}
	l, err := seed.New(t.Context(), seed.Config{Seed: s, Hide: HostDirs(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return // a file that others lie in
	}
	for _, e := range s.Entries {
		if _, err := l.ReadDir(t.Context(), e.Path); err == nil && e.Mode != 0 && e.Mode&0o170000 != 0o040000 {
			t.Errorf("%q, mode %#o, was listed", e.Path, e.Mode)
		}
	}
	_ = l.Close()
}

// TestGoldenSeedAlone: without a source, the seed layer serves what images say.
func TestGoldenSeedAlone(t *testing.T) {
	c, err := LoadFS(os.DirFS("testdata/plain"), "testdata/plain")
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range []seed.Names{seed.Tree, seed.Flat} {
		l, err := seed.New(t.Context(), seed.Config{Seed: c.Seed(), Names: names, Hide: HostDirs()})
		if err != nil {
			t.Fatal(err)
		}
		p := layers.Path("tmp/migratefs-golden/job/read-only")
		if names == seed.Flat {
			p = "tmp.migratefs-golden.job.read-only"
		}
		a, err := l.Stat(t.Context(), p)
		if err != nil || a.Mode != 0o100440 || a.Size != 10000 || a.Known != layers.KnownSize {
			t.Errorf("%q: %+v, %v", p, a, err)
		}
	}
}

// FuzzPages: whatever a pagemap holds, it is read to an end.
func FuzzPages(f *testing.F) {
	for name, file := range golden(f, "plain") {
		if strings.HasPrefix(name, "pagemap-") {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := fstest.MapFS{
			"pagemap-1.img": &fstest.MapFile{Data: data},
			"pages-1.img":   &fstest.MapFile{Data: make([]byte, 4096)},
		}
		if err := checkPages(m, 4096); err != nil && strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("error %q is not one line of text", err)
		}
		if lazy, err := Lazy(m, "amd64", 1); err == nil {
			for i, r := range lazy.Pages {
				if r.Start >= r.End || r.Off < 0 || i > 0 && r.Start < lazy.Pages[i-1].End {
					t.Errorf("%v after %v", r, lazy.Pages[:i])
				}
			}
		}
	})
}

// FuzzLog: whatever CRIU logs, an error is one line.
func FuzzLog(f *testing.F) {
	f.Add("(00.000001) Error (criu/x.c:1): File a has bad size 5 (expect 7)\n")
	f.Add("(00.000001)   12: Error (a): \xff\n(")
	f.Fuzz(func(t *testing.T, log string) {
		if s := Summary(LogErrors(strings.NewReader(log))); strings.ContainsAny(s, "\n\x00") {
			t.Errorf("summary %q is not one line of text", s)
		}
	})
}
