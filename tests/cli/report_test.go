package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// section is what is between a headline of a page and the next.
func section(t *testing.T, page, head string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "<h2>"+head+"</h2>")
	if !ok {
		t.Fatalf("the page has no %q:\n%s", head, page)
	}
	text, _, _ := strings.Cut(rest, "</section>")
	return text
}

// TestReport: the page of local mounts, and where it is written.
func TestReport(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	m := testbed.Mount(t, "mode=overlay,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	must(t, os.WriteFile(m.Path("file"), []byte("changed"), 0o644))
	out, _ := tool(t, 0, "report", "-o", "-", s.at("mnt"))
	contains(t, "the page", out, "<!DOCTYPE html>", "<bdi>"+s.at("mnt")+"</bdi>", "mode=overlay")
	contains(t, "what moved", section(t, out, "What moved"), "<dt>Copied up</dt><dd>1 file, ")
	contains(t, "latencies", section(t, out, "How long things took"), "copy-ups", "request: lookup", "<svg")
	contains(t, "layers", section(t, out, "Layers"), s.at("upper"), s.at("lower"), "free of")
	contains(t, "options", section(t, out, "Options and versions"), "mode=overlay,lowerdir=", "Linux ")
	contains(t, "time", section(t, out, "Over time"), `class="s1"`)
	if strings.Contains(out, "at risk") || strings.Contains(out, "ZgotmplZ") || strings.Contains(out, "%!") {
		t.Errorf("a local mount has no source:\n%s", out)
	}

	// A file is there whole, and is its owner's; what a symlink is to, is written.
	to := s.at("page.html")
	must(t, os.WriteFile(to, []byte("an old one"), 0o644))
	old, err := os.Open(to)
	must(t, err)
	defer old.Close()
	must(t, os.Symlink("page.html", s.at("link")))
	tool(t, 0, "report", "-o", s.at("link"), s.at("mnt"))
	b, err := os.ReadFile(to)
	must(t, err)
	if fi, err := os.Lstat(to); err != nil || fi.Mode() != 0o600 || !strings.HasSuffix(string(b), "</html>\n") {
		t.Errorf("the file is %v, %v, and ends with %q", fi, err, b[max(0, len(b)-20):])
	}
	was := make([]byte, 20)
	if n, _ := old.Read(was); string(was[:n]) != "an old one" {
		t.Errorf("who had the old one open reads %q", was[:n])
	}
	if fi, err := os.Lstat(s.at("link")); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the symlink is %v, %v", fi, err)
	}
	must(t, unix.Mkfifo(s.at("fifo"), 0o600))
	fifo, err := os.OpenFile(s.at("fifo"), os.O_RDWR, 0)
	must(t, err)
	defer fifo.Close()
	_, err = unix.FcntlInt(fifo.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	must(t, err)
	tool(t, 0, "report", "-o", s.at("fifo"), s.at("mnt"))
	if fi, err := os.Lstat(s.at("fifo")); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("a fifo was replaced by %v, %v", fi, err)
	}

	for _, bad := range [][]string{
		{"2", "give one mountpoint", "report", "-o", "-"}, {"2", "with -o", "report", s.at("mnt")},
		{"2", "give one mountpoint", "report", "-o", "-", "a", "b"}, {"1", "is not mounted", "report", "-o", "-", s.at("lower")},
		{"1", "is not mounted", "report", "-o", "-", s.at("not there")}, {"1", "is a directory", "report", "-o", s.dir, s.at("mnt")},
		{"1", "the report is not written", "report", "-o", s.at("not there/page.html"), s.at("mnt")},
		{"1", "no space left", "report", "-o", "/dev/full", s.at("mnt")},
	} {
		_, line := tool(t, int(bad[0][0]-'0'), bad[2:]...)
		contains(t, strings.Join(bad[2:], " "), line, bad[1])
	}
	must(t, os.Mkdir(s.at("full"), 0o755))
	on(t, s.at("full"), "tmpfs", "mode=0755,size=4k")
	must(t, os.WriteFile(s.at("full/page.html"), []byte("stays"), 0o644))
	tool(t, 1, "report", "-o", s.at("full/page.html"), s.at("mnt"))
	if b, err := os.ReadFile(s.at("full/page.html")); string(b) != "stays" {
		t.Errorf("without room for it, the old page is %q, %v", b, err)
	}
	left, err := filepath.Glob(s.at("full/.*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	m.Kill()
	_, line := tool(t, 1, "report", "-o", "-", s.at("mnt"))
	contains(t, "the report of a dead mount", line, "is dead", "migratefs umount")
	m.RemoveDead()

	// Nothing to show.
	m = testbed.Mount(t, "lowerdir="+s.at("lower"), s.at("mnt"))
	out, _ = tool(t, 0, "report", "-o", "-", s.at("mnt"))
	contains(t, "the page of a mount without an upper", out, "read-only", "No request took 50 ms or more", "Nothing failed", "</html>")
	m.Unmount()
}

// TestReportDrained: what a drain has moved beside a mount, the mount tells.
func TestReportDrained(t *testing.T) {
	testbed.NeedFUSE(t)
	old, _, options := drainLayers(t)
	point := filepath.Join(filepath.Dir(old), "mnt")
	must(t, os.Mkdir(point, 0o755))
	m := testbed.Mount(t, options, point)
	out, _ := tool(t, 0, "report", "-o", "-", point)
	contains(t, "what moved", section(t, out, "What moved"), "<dt>Drained</dt><dd>nothing")
	tool(t, 0, "drain", filepath.Join(point, "a dir/sub/3"))
	tool(t, 0, "drain", point)
	out, _ = tool(t, 0, "report", "-o", "-", point)
	contains(t, "what moved", section(t, out, "What moved"), "<dt>Drained</dt><dd>5 files, 9.8 KiB, by drains")
	contains(t, "the chart", section(t, out, "Over time"), "drained: 9.8 KiB", "<svg")
	out, _ = tool(t, 0, "status", point)
	contains(t, "status", out, "  drained    5 files, 9.8 KiB by 'migratefs drain'")
	m.Unmount()
}
