package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/control"
)

// What top shows is as wide and as high as the terminal, whatever names there are, and
// tells of each process and file which it is and how long it waited.
func TestTopFits(t *testing.T) {
	now := &control.Top{Seconds: 2, Dropped: 3}
	long := strings.Repeat("a long directory/", 9) + strings.Repeat("大", 40)
	for i := range 30 {
		d := control.Doing{Requests: 123456, Failed: 9999, Waited: 1.5, Longest: 0.25,
			Read: 1 << 33, Written: 1 << 34, Fetched: 1 << 35, CopyUps: 12345, Copied: 1 << 36}
		p, f := d, d
		p.PID, p.Program = uint32(4000000+i), "program of that"
		f.Path = copyup.Quoted(fmt.Sprintf("%s/name%d", long, i))
		now.Processes, now.Files = append(now.Processes, p), append(now.Files, f)
	}
	for _, size := range []struct{ width, height, lines int }{{0, 0, 10}, {200, 50, 10}, {100, 24, 9}, {80, 24, 9}, {40, 12, 3}, {24, 8, 1}} {
		var b strings.Builder
		f := topFlags{lines: 10}
		f.show(&b, "/mnt/"+long, &control.Top{}, now, size.width, size.height)
		text := b.String()
		if n := strings.Count(text, "\n"); size.height > 0 && n > size.height-1 {
			t.Errorf("%+v: %d lines", size, n)
		}
		names := 0
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if n := runewidth.StringWidth(line); size.width > 0 && n > size.width {
				t.Errorf("%+v: %d columns: %q", size, n, line)
			}
			if strings.Contains(line, "1500.0 ms") && strings.HasSuffix(line, fmt.Sprintf("/name%d", names)) {
				names++
			}
		}
		if names != size.lines || !strings.Contains(text, "4000000 prog") || !strings.Contains(text, "WAITED") {
			t.Errorf("%+v: %d files, want %d:\n%s", size, names, size.lines, text)
		}
	}

	// With room for some of the numbers, what nobody has goes first.
	now.Processes = now.Processes[:1]
	now.Processes[0] = control.Doing{PID: 42, Program: "cat", Requests: 3, Waited: 0.5, Longest: 0.4, Read: 4096}
	now.Files, now.Dropped = nil, 0
	var b strings.Builder
	f := topFlags{lines: 10}
	f.show(&b, "/mnt", &control.Top{}, now, 80, 24)
	if want := `/mnt, in the last 2.0 s
REQUESTS  WAITED    LONGEST   READ     COPIED UP  PROCESS
3         500.0 ms  400.0 ms  4.0 KiB             42 cat

WAITED  LONGEST  READ  WRITTEN  FETCHED  COPIED UP  FILE
nothing
`; b.String() != want {
		t.Errorf("\n%s\nwant\n%s", b.String(), want)
	}
}
