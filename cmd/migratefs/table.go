package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/mattn/go-runewidth"
)

// column is what a table tells of each D. Those that a narrow terminal has no room for
// go in the order of last, 0 never.
type column[D any] struct {
	title string
	last  int
	text  func(d D) string
}

// table has a line for each D: its columns, and its name behind them.
type table[D any] struct {
	columns []column[D]
	title   string // of the names
	paths   bool   // which they are: of one that is too long the end tells more
	cells   [][]string
	names   []string
}

func (t *table[D]) add(d D, name string) {
	row := make([]string, len(t.columns))
	for i, c := range t.columns {
		row[i] = c.text(d)
	}
	t.cells, t.names = append(t.cells, row), append(t.names, name)
}

// leastName is how many columns names have at least, before all columns have theirs.
const leastName = 24

// print prints t. Where there is no room, columns go in which nobody has anything, then
// others; then names are cut.
func (t *table[D]) print(out io.Writer, width int) {
	wide := make([]int, len(t.columns)) // 0: not shown
	sum := 0
	for i, c := range t.columns {
		wide[i] = len(c.title) + 2
		for _, row := range t.cells {
			wide[i] = max(wide[i], runewidth.StringWidth(row[i])+2)
		}
		sum += wide[i]
	}
	drop := func(i int) {
		if width > 0 && sum+leastName > width {
			sum -= wide[i]
			wide[i] = 0
		}
	}
	for i := range t.columns {
		if !t.has(i) {
			drop(i)
		}
	}
	for n := range len(t.columns) {
		for i, c := range t.columns {
			if c.last == n+1 {
				drop(i)
			}
		}
	}
	line := func(cells func(i int) string, name string) {
		var b strings.Builder
		for i := range t.columns {
			if wide[i] > 0 {
				b.WriteString(runewidth.FillRight(cells(i), wide[i]))
			}
		}
		if over := runewidth.StringWidth(name) - (width - sum); width > 0 && over > 0 && t.paths {
			name = runewidth.TruncateLeft(name, over+1, "…")
		}
		fmt.Fprintln(out, cutTo(b.String()+name, width))
	}
	line(func(i int) string { return t.columns[i].title }, t.title)
	for n, row := range t.cells {
		line(func(i int) string { return row[i] }, t.names[n])
	}
	if len(t.cells) == 0 {
		fmt.Fprintln(out, "nothing")
	}
}

// has reports whether somebody has something in a column.
func (t *table[D]) has(column int) bool {
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
