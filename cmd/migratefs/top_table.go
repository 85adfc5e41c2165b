package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"

	"github.com/migratefs/migratefs/internal/control"
)

// doingTable is what processes or files have done: a line of numbers for each, and its
// name behind them.
type doingTable struct {
	title string // of the names
	paths bool   // which they are: of one that is too long the end tells more
	cells [][]string
	names []string
}

// doingColumns are the numbers; those that a narrow terminal has no room for go in the
// order of last, 0 never.
var doingColumns = []struct {
	title string
	last  int
	text  func(d *control.Doing) string
}{
	{"REQUESTS", 3, func(d *control.Doing) string { return fmt.Sprint(d.Requests) }},
	{"FAILED", 7, func(d *control.Doing) string { return fmt.Sprint(d.Failed) }},
	{"WAITED", 0, func(d *control.Doing) string { return shortTime(d.Waited) }},
	{"LONGEST", 1, func(d *control.Doing) string { return shortTime(d.Longest) }},
	{"READ", 5, func(d *control.Doing) string { return someBytes(d.Read) }},
	{"WRITTEN", 4, func(d *control.Doing) string { return someBytes(d.Written) }},
	{"FETCHED", 6, func(d *control.Doing) string { return someBytes(d.Fetched) }},
	{"COPIED UP", 2, func(d *control.Doing) string {
		if d.CopyUps == 0 {
			return ""
		}
		return fmt.Sprintf("%d, %s", d.CopyUps, bytesText(d.Copied))
	}},
}

func (t *doingTable) add(d *control.Doing, name string) {
	row := make([]string, len(doingColumns))
	for i, c := range doingColumns {
		row[i] = c.text(d)
	}
	t.cells, t.names = append(t.cells, row), append(t.names, name)
}

// leastName is how many columns names have at least, before all numbers have theirs.
const leastName = 24

// print prints t. Where there is no room, columns go in which nobody has anything, then
// others; then names are cut.
func (t *doingTable) print(out io.Writer, width int) {
	wide := make([]int, len(doingColumns)) // 0: not shown
	sum := 0
	for i, c := range doingColumns {
		wide[i] = len(c.title) + 2
		for _, row := range t.cells {
			wide[i] = max(wide[i], len(row[i])+2)
		}
		sum += wide[i]
	}
	drop := func(i int) {
		if width > 0 && sum+leastName > width {
			sum -= wide[i]
			wide[i] = 0
		}
	}
	for i := range doingColumns {
		if !t.has(i) {
			drop(i)
		}
	}
	for n := range len(doingColumns) {
		for i, c := range doingColumns {
			if c.last == n+1 {
				drop(i)
			}
		}
	}
	line := func(cells func(i int) string, name string) {
		var b strings.Builder
		for i := range doingColumns {
			if wide[i] > 0 {
				fmt.Fprintf(&b, "%-*s", wide[i], cells(i))
			}
		}
		if over := runewidth.StringWidth(name) - (width - sum); width > 0 && over > 0 && t.paths {
			name = runewidth.TruncateLeft(name, over+1, "…")
		}
		fmt.Fprintln(out, cutTo(b.String()+name, width))
	}
	line(func(i int) string { return doingColumns[i].title }, t.title)
	for n, row := range t.cells {
		line(func(i int) string { return row[i] }, t.names[n])
	}
	if len(t.cells) == 0 {
		fmt.Fprintln(out, "nothing")
	}
}

// has reports whether somebody has something in a column.
func (t *doingTable) has(column int) bool {
	for _, row := range t.cells {
		if row[column] != "" && row[column] != "0" {
			return true
		}
	}
	return false
}

// cutTo is line on width columns of a terminal; 0: there is none.
func cutTo(line string, width int) string {
	if width == 0 {
		return line
	}
	return runewidth.Truncate(line, width, "…")
}
