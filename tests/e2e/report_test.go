package e2e

import (
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// The page of a mount whose names are meant for browsers: the paths close a script, an
// attribute and a comment, load from a host, and turn the direction of writing.
var hostileNames = []string{
	"<script>document.title='ran at once'",
	"<script>document.title='ran'</script>", // two names
	`"><img src=x onerror="document.title='ran'">`,
	"<img src=http:example.invalid>",
	"--><style>*{display:none}",
	"line\none\rmore\ttab",
	"not utf8 \xff\xfe",
	"turned \u202egnp.exe",
	"'{{.}}' `$(x)` &amp; \\",
}

// TestReport: the page of a mount with pending files, as a browser shows it.
func TestReport(t *testing.T) {
	s := newSource(t)
	for i, name := range hostileNames {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(s.dir, name)), 0o755))
		s.put(t, name, 10_000+i)
	}
	s.put(t, "slow", 1<<20)
	s.local = filepath.Join(s.local, `<b onclick="document.title='ran'">`)
	for _, d := range []string{s.upper(), s.mnt()} {
		must(t, os.MkdirAll(d, 0o755))
	}
	m := s.mount(t, ",fill=off,prefetch=off")
	for _, name := range hostileNames {
		must(t, os.Chmod(m.Path(name), 0o600))
	}
	// A request that takes long, of a name that is no better.
	s.link.SetRTT(200 * time.Millisecond)
	_, err := os.ReadFile(m.Path("slow"))
	must(t, err)
	_, err = os.ReadFile(m.Path(hostileNames[1]))
	must(t, err)
	s.link.SetRTT(0)

	dir := testbed.TempDir(t)
	file := filepath.Join(dir, "report.html")
	must(t, os.WriteFile(file, []byte("an old one"), 0o644))
	command(t, 0, "report", m.Path(""), "-o", file)
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the page is %v, %v", fi, err)
	}

	// That a script which runs, and a request, would be seen.
	bad := filepath.Join(dir, "bad.html")
	must(t, os.WriteFile(bad, []byte(`<title>no</title><script>document.title='ran'</script><img src="http://example.invalid/x">`), 0o600))
	if p := testbed.Browse(t, bad, 400, 300); !strings.Contains(p.DOM, "<title>ran</title>") || !strings.Contains(strings.Join(p.Requests, "\n"), "example.invalid") {
		t.Fatalf("a page with a script and an image of another host is shown as\n%s\nand asks for %q", p.DOM, p.Requests)
	}

	const width, height = 1000, 1400
	p := testbed.Browse(t, file, width, height)
	if len(p.Requests) > 0 {
		t.Errorf("the page asks for %q", p.Requests)
	}
	for _, element := range regexp.MustCompile(`<[a-zA-Z]+`).FindAllString(p.DOM, -1) {
		switch element[1:] {
		case "script", "img", "iframe", "object", "embed", "link", "b", "a", "form":
			t.Errorf("there is a %s> in the page", element)
		}
	}
	if n := strings.Count(p.DOM, "<style>"); n != 1 {
		t.Errorf("%d styles", n)
	}
	for _, want := range []string{
		" - migratefs</title>", `<h1><bdi>` + escaped(m.Path("")) + `</bdi></h1>`, ">lazy<",
		"Missing, at risk, in conflict", "Slowest files", "How long things took", "Errors by kind", "waits for a source", "request: setattr",
		`line\none\rmore\ttab`, `not utf8 \xff\xfe`, `turned \u202egnp.exe`, escaped(`/` + hostileNames[1]),
		"fill=off,prefetch=off", s.sshd.Alias + ":",
	} {
		if !strings.Contains(p.DOM, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if t.Failed() {
		t.Log(p.DOM)
	}

	f, err := os.Open(p.Picture)
	must(t, err)
	defer f.Close()
	img, err := png.Decode(f)
	must(t, err)
	if b := img.Bounds(); b.Dx() != width || b.Dy() != height {
		t.Errorf("the picture is %v", b)
	}
	// Text and lines: in all quarters of its height there is something of another colour.
	for quarter := range 4 {
		colours := map[any]int{}
		for y := quarter * height / 4; y < (quarter+1)*height/4; y++ {
			for x := range width {
				colours[img.At(x, y)]++
			}
		}
		if len(colours) < 8 {
			t.Errorf("quarter %d of the picture has %d colours: %v", quarter, len(colours), colours)
		}
	}
}

// escaped is a name as the page has it, as a browser writes it down.
func escaped(s string) string {
	q := strconv.Quote(s)
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(q[1 : len(q)-1])
}
