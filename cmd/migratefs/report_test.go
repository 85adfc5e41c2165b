package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

// hostile is what no page may show as it is, nor a terminal.
const hostile = "</bdi><script>alert(1)</script>\" onload='x' \x1b[31m\n\xff\u202e\u009b&amp;"

// hostileReport is of a daemon that tells anything.
func hostileReport() *reportData {
	s := goldenMount()
	st := s.status
	when := goldenNow.Add(-time.Hour)
	st.Version, st.State, st.Hosts, st.Mode, st.Options, st.Device = hostile, "filling", hostile, hostile, hostile, hostile
	for i := range st.Layers {
		st.Layers[i].Name, st.Layers[i].Role, st.Layers[i].Why = hostile, hostile, hostile
	}
	st.LastError, st.Started, st.Uptime = hostile, when, 1e300
	st.Activity.Errors = map[string]uint64{hostile: 1, "ENOENT": 1 << 63}
	st.Activity.Failures[hostile] = 3
	st.Fill.Rate = 1e300
	st.Migration = &overlay.StateReport{
		Phase: hostile, Scope: hostile, Looked: &when, Here: overlay.Amount{Files: -1, Bytes: 1 << 62}, Missing: overlay.Amount{Files: 1 << 62, Bytes: -5},
		AtRisk: overlay.Amount{Files: 1, Bytes: 2}, Left: 3, LostReads: 9,
		Lost: []overlay.LostReport{{Path: hostile, When: when, Process: hostile, Why: hostile, Pid: 7}},
	}
	r := &reportData{seen: s, now: goldenNow, kernel: hostile}
	for i := range 500 {
		r.history.Samples = append(r.history.Samples, control.Sample{
			When: when.Add(time.Duration(i%400) * 7 * time.Second), State: []string{"lazy", hostile, "filling"}[i/50%3],
			Here: int64(i) << 40, Missing: -int64(i), Requests: uint64(i * 1000 % 7777), Fetched: 1 << 62, Away: i % 2,
		})
		r.missing.Missing = append(r.missing.Missing, overlay.MissingReport{Path: copyup.Quoted(fmt.Sprint(hostile, i)), Bytes: int64(i), Why: hostile})
	}
	r.missing.More = 17
	r.conflicts.Conflicts = []overlay.ConflictReport{{Path: hostile, Why: hostile, Layer: hostile, Source: hostile}}
	r.slow = []control.Slow{{Path: hostile, Op: hostile, Longest: 1e300, Program: hostile, PID: 4}, {Path: "."}}
	r.latencies = control.Latencies{
		Bounds:   []float64{0.001, 0.004},
		Requests: map[string]control.Latency{hostile: {Counts: []uint64{1, 0, 1 << 63, 4, 5}, Seconds: -1}, "none": {}},
		CopyUps:  control.Latency{Counts: []uint64{3, 1, 1}, Seconds: 7},
	}
	return r
}

// TestReportPage: whatever a daemon tells, the page is text and lines.
func TestReportPage(t *testing.T) {
	var b bytes.Buffer
	if err := hostileReport().write(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, bad := range []string{"<script", "\x1b", "\u202e", "\u009b", "\xff", "onload='", `onload="`, "NaN", "Inf", "ZgotmplZ", "%!", "http:", "https:", "url("} {
		if strings.Contains(page, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	if n := strings.Count(page, `\x1b[31m\n`); n < 20 {
		t.Errorf("names are shown %d times", n)
	}
	// What the policy lets in is our style, as it is in the page.
	style := page[strings.Index(page, "<style>")+len("<style>") : strings.Index(page, "</style>")]
	sum := sha256.Sum256([]byte(style))
	policy := regexp.MustCompile(`Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(page)
	if want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'"; policy == nil || html.UnescapeString(policy[1]) != want {
		t.Errorf("the policy is %q, not %q", policy, want)
	}
	if strings.Contains(page, " style=") {
		t.Error("a style that the policy does not let in")
	}
	// Lines are in their charts, and go to the right.
	paths := regexp.MustCompile(`<path class="s[123]" vector-effect="non-scaling-stroke" d="([^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(paths) < 4 {
		t.Errorf("%d lines", len(paths))
	}
	for _, p := range paths {
		last := -1.0
		for _, point := range regexp.MustCompile(`[ML]([^ ]+) ([^ML]+)`).FindAllStringSubmatch(p[1], -1) {
			x, err := strconv.ParseFloat(point[1], 64)
			y, yerr := strconv.ParseFloat(point[2], 64)
			if err != nil || yerr != nil || x < last || x > 1000 || y < 0 || y > 100 {
				t.Fatalf("a line goes to %q after %v", point, last)
			}
			last = x
		}
	}
	if n := strings.Count(page, "</tr>"); n > 300 {
		t.Errorf("%d rows", n)
	}
	if !strings.Contains(page, "And 317 more") {
		t.Error("it does not say how many names are left out")
	}
	if left := tagsOpen(page); left != "" {
		t.Errorf("not closed: %s", left)
	}
}

// tagsOpen returns the elements of the page that are not closed where they should be.
func tagsOpen(page string) string {
	var open []string
	for _, tag := range regexp.MustCompile(`<(/?)([a-zA-Z0-9]+)[^>]*?(/?)>`).FindAllStringSubmatch(page, -1) {
		switch {
		case tag[3] != "" || tag[2] == "meta":
		case tag[1] == "":
			open = append(open, tag[2])
		case len(open) == 0 || open[len(open)-1] != tag[2]:
			return fmt.Sprint(tag[0], " after ", open)
		default:
			open = open[:len(open)-1]
		}
	}
	return strings.Join(open, " ")
}

// TestReportFigures: what is drawn and written is what was told.
func TestReportFigures(t *testing.T) {
	s := goldenMount()
	s.status.Started = goldenNow.Add(-100 * time.Second)
	r := &reportData{seen: s, now: goldenNow}
	for i := range 3 {
		r.history.Samples = append(r.history.Samples, control.Sample{
			When: s.status.Started.Add(time.Duration(i*25) * time.Second), State: "lazy", Copied: int64(i), Requests: uint64(i * 250), Away: i / 2,
		})
	}
	s.status.Activity.Copied, s.status.Activity.Requests, s.status.Activity.Failures = 4, 1000, nil
	r.latencies = control.Latencies{Bounds: []float64{0.001, 0.004}, CopyUps: control.Latency{Counts: []uint64{97, 2, 1}, Seconds: 2}}
	p := r.page()
	line := func(title, name string) (path, last string) {
		for _, c := range p.Charts {
			for _, l := range c.Series {
				if c.Title == title && l.Name == name {
					return l.Path, l.Last
				}
			}
		}
		t.Errorf("no line %q in %q", name, title)
		return "", ""
	}
	if path, last := line("Moved since the mount", "copied up"); path != "M0.0 100.00L250.0 75.00L500.0 50.00L1000.0 0.00" || last != "4 B" {
		t.Errorf("copied up, 0, 1, 2 and 4 bytes: %s, %s", path, last)
	}
	if path, last := line("Requests a second", "requests"); path != "M0.0 0.00L250.0 0.00L500.0 0.00L1000.0 0.00" || last != "10" {
		t.Errorf("10 requests a second: %s, %s", path, last)
	}
	if s := p.Strip; len(s.Parts) != 4 || s.Parts[0].Class != "lazy" || s.Parts[0].Width != "500.0" || s.Parts[1].Class != "filling" || s.Parts[1].X != "500.0" ||
		s.Parts[2].Class != "gone" || s.Parts[2].X != "250.0" {
		t.Errorf("lazy for 50 s, away for 25 s, filling for 50 s: %+v", s)
	}
	if l := p.Latencies[0]; l.Count != "100" || l.Average != "20 ms" || l.Half != "1 ms" || l.Most != "4 ms" || l.Said != "1 ms: 97, 4 ms: 2, over 4 ms: 1" {
		t.Errorf("%+v", l)
	}

	// A mount of this moment.
	r = &reportData{seen: &seenMount{status: &control.Status{Started: goldenNow}}, now: goldenNow}
	if p := r.page(); p.Quiet == "" || len(p.Charts) > 0 || p.Strip != nil {
		t.Errorf("with nothing to draw: %+v", p)
	}
}

func TestOnLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain \u00e4 \u6f22 \\": "plain \u00e4 \u6f22 \\", "a\nb\x1b": `a\nb\x1b`, "\xff\u202e\u200b": `\xff\u202e\u200b`, "": "", "\u009b1m\u007f": `\u009b1m\x7f`,
	} {
		if got := onLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestWriteWhole: what cannot be written leaves what was there.
func TestWriteWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	failed := fmt.Errorf("not today")
	if err := writeWhole(path, func(io.Writer) error { return failed }); err != failed {
		t.Errorf("%v", err)
	}
	all, err := os.ReadDir(filepath.Dir(path))
	b, rerr := os.ReadFile(path)
	if err != nil || rerr != nil || len(all) != 1 || string(b) != "old" {
		t.Errorf("left: %v, %v; %q, %v", all, err, b, rerr)
	}
}

func TestShownOptions(t *testing.T) {
	given := []string{`lowerdir=u@h:/a\,b,ssh_option=ProxyCommand=sshpass -p hunter2 nc`, "mode=overlay", "sftp_server=sudo hunter2,quokka=hunter2"}
	if got, want := shownOptions(given), `lowerdir=u@h:/a\,b,ssh_option=ProxyCommand=(left out),mode=overlay,sftp_server=(left out),quokka=...`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
