package e2e

import (
	"encoding/xml"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/migratefs/migratefs/tests/testbed"
)

var picture = flag.String("picture", "", "TestWatch: write what the terminal shows half way through a larger drain to this SVG file")

// TestWatch watches on a terminal how files come from another host, from the beginning
// to the end. 'make picture' has it draw what one sees.
func TestWatch(t *testing.T) {
	a, b := testbed.NewHosts(t)
	link := testbed.NewProxyOn(t, b, "")
	sshd := testbed.StartSSHD(t, testbed.SSHDConfig{Host: a, Through: link})
	b.Knows(sshd)
	random := rand.NewChaCha8([32]byte{1})
	put := func(name string, size int) {
		path := a.Path(filepath.Join("/srv/data", name))
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		content := make([]byte, size)
		_, _ = random.Read(content)
		must(t, os.WriteFile(path, content, 0o644))
	}
	put("changed", 16<<20)
	put("run0/result0", 1<<20)
	options := "lowerdir=" + sshd.Target("/srv/data") + ",upperdir=/srv/data"
	if *picture != "" {
		options = "fill_rate=24M," + options
		for i := range 240 {
			put(fmt.Sprintf("run%d/result%d", i%8, i), 1<<20)
		}
	}
	b.Run("sh", "-c", "mount -t tmpfs -o mode=755 point /mnt && mkdir /mnt/data /srv/data")
	testbed.Mount(t, options, "/mnt/data", testbed.MountConfig{Host: b, Binary: testbed.Build(t)})
	term := testbed.StartTerminal(t, b.Command("env", "TERM=xterm", testbed.Build(t), "status", "--watch", "--interval", "250ms", "/mnt/data"), 100, 20)
	// shows waits until the terminal shows all of these at once, and returns its lines.
	shows := func(what string, all ...string) (lines []string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
			lines = term.Screen()
			text := strings.Join(lines, "\n")
			left := slices.DeleteFunc(slices.Clone(all), func(re string) bool { return regexp.MustCompile("(?m)" + re).MatchString(text) })
			if len(left) == 0 {
				return lines
			}
			if time.Now().After(end) {
				t.Fatalf("%s: no %q in\n%s", what, left, text)
			}
		}
	}
	shows("before anything was changed", `\A/mnt/data  overlay, lazy$`, `^  at risk    nothing`)

	if *picture == "" {
		// What was changed comes, and takes a quarter of a minute.
		link.SetRate(1 << 20)
		must(t, os.Chmod(b.Path("/mnt/data/changed"), 0o600))
		shows("half way", `\A/mnt/data  overlay, filling$`, `^  \[#+-+\] +[1-8]?[0-9]%  [1-9].* of 16\.0 MiB$`, `^  filling    1 file pending, 0 done`,
			`^  at risk    if the source died now, .* in 1 file`)
		link.SetRate(0)
		shows("all of it", `\A/mnt/data  overlay, lazy$`, `^  at risk    nothing`)
	}
	drain, err := testbed.Start(b.Command(testbed.Build(t), "drain", "/mnt/data"))
	must(t, err)
	defer drain.KillTree()
	if *picture != "" {
		lines := shows("half way through a drain", `^  \[#+-+\] +[45][0-9]%  .* MiB of 25[0-9]\.[0-9] MiB$`, `^  filling    .* pending, .* MiB/s, [0-9]+s left$`)
		must(t, os.WriteFile(*picture, []byte(terminalPicture("migratefs status --watch", lines)), 0o644))
	}
	shows("the end", `\A/mnt/data  overlay, complete$`, `^  missing    0 files, 0 B$`)
	must(t, drain.Wait())
	term.Type("\x03")
	if err := term.Process.Wait(); err != nil {
		t.Errorf("^C: %v", err)
	}
	if text := strings.Join(term.Screen(), "\n"); strings.Count(text, "/mnt/data  overlay") != 1 {
		t.Errorf("the mount is there more than once:\n%s", text)
	}
}

// terminalPicture is an SVG of what a terminal shows.
func terminalPicture(title string, lines []string) string {
	const cell, line, margin, head = 8.0, 20.0, 18.0, 34.0
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	columns := 0
	for _, l := range lines {
		columns = max(columns, utf8.RuneCountInString(l))
	}
	width, height := 2*margin+cell*float64(columns), head+line*float64(len(lines))+margin
	var b strings.Builder
	text := func(x, y float64, class, s string) {
		n := utf8.RuneCountInString(s)
		fmt.Fprintf(&b, `<text class="%s" x="%g" y="%g" textLength="%g" xml:space="preserve">`, class, x, y, cell*float64(n))
		_ = xml.EscapeText(&b, []byte(s))
		b.WriteString("</text>\n")
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" aria-label="A terminal with %s, half way through a drain">
<style>
text { font: 13.3px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; fill: #d5dde6 }
.title { fill: #8b98a6 } .name { fill: #ffffff; font-weight: bold } .label { fill: #6cb0ff } .bar { fill: #56cfa2 }
</style>
<rect width="100%%" height="100%%" rx="8" fill="#141a21"/>
`, width, height, title)
	text(margin, 22, "title", title)
	for i, l := range lines {
		y := head + line*float64(i+1) - 5
		const label = 13 // columns
		switch {
		case strings.HasPrefix(l, "  ["):
			text(margin, y, "bar", l)
		case !strings.HasPrefix(l, "  "):
			text(margin, y, "name", l)
		default:
			if head := strings.TrimSpace(l[:label]); head != "" {
				text(margin+2*cell, y, "label", head)
			}
			text(margin+label*cell, y, "text", l[label:])
		}
	}
	return b.String() + "</svg>\n"
}
