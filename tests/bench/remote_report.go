package main

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
	"time"
)

// remotePage is docs/performance-remote.md.
func (r *report) remotePage(w io.Writer) {
	fmt.Fprintf(w, `# Performance over SSH

Written by `+"`make bench%s`"+` (%s, %d runs): %s.
All reach one sshd (internal-sftp) on the same machine through one proxy that makes a round trip take longer, and begin
with nothing: a new mount, nothing cached here, the source's files warm. What each row does is in `+"`tests/bench/remote.go`"+`.

![time by ours, round trip %v](performance-remote.svg)

Seconds and MiB are medians; "ours, of it" is the median of our time by this one's in the same run, less is better. What took
more than %v was measured once. Waits are the round trips that somebody waited for, by what the longer link took more.
`, r.cfg.part(), r.began.Format("2006-01-02"), r.cfg.runs, machine(), rtts[len(rtts)-1], tooSlow)
	r.remoteTable(w)
}

func (r *report) remoteTable(out io.Writer) {
	each := len(r.remotes) / len(rtts)
	for i := range each {
		d := &r.remotes[i]
		fmt.Fprintf(out, "\n## %s\n\n| |", d.errand)
		for _, rtt := range rtts {
			fmt.Fprintf(out, " %v: s | ours, of it | MiB here |", rtt)
		}
		fmt.Fprintf(out, " waits |\n|---|%s--:|\n", strings.Repeat("--:|--:|--:|", len(rtts)))
		for _, w := range ways {
			if len(d.took[w.name]) == 0 {
				continue
			}
			fmt.Fprintf(out, "| %s |", w.name)
			for n := range rtts {
				far := &r.remotes[i+n*each]
				fmt.Fprintf(out, " %.3f | %s | %.1f |", median(far.took[w.name]), far.oursOf(w.name), float64(far.down[w.name])/(1<<20))
			}
			last := &r.remotes[i+(len(rtts)-1)*each]
			more := median(last.took[w.name]) - median(d.took[w.name])
			fmt.Fprintf(out, " %.0f |\n", max(0, more/(last.rtt-d.rtt).Seconds()))
		}
	}
}

// oursOf is the median over the runs of our time by that of the way called name.
func (d *told) oursOf(name string) string {
	v := d.by(name)
	if math.IsNaN(v) || name == "ours" {
		return ""
	}
	return fmt.Sprintf("%.2f", 1/v)
}

// by is the median over the runs of the time of the way called name by ours.
func (d *told) by(name string) float64 { return byOurs(d.took[name], d.took["ours"]) }

// byOurs is the median over the runs of a time by ours.
func byOurs(took, ours []float64) float64 {
	var v []float64
	for i := range min(len(took), len(ours)) {
		v = append(v, took[i]/ours[i])
	}
	return median(v)
}

// bars are some of a chart, of one thing.
type bars struct {
	name  string
	value []bar
}

// bar is a time by ours; NaN: it was not measured.
type bar struct {
	name string
	by   float64
}

// remoteChart draws a bar for each way and errand over the longest link.
func (r *report) remoteChart() string {
	var all []bars
	each := len(r.remotes) / len(rtts)
	for i := range each {
		d := &r.remotes[len(r.remotes)-each+i]
		g := bars{name: d.errand}
		for _, w := range ways {
			g.value = append(g.value, bar{w.name, d.by(w.name)})
		}
		all = append(all, g)
	}
	return barChart("time", all)
}

// barChart draws times by ours, over the longest link, on a scale on which each step is ten
// times the one before.
func barChart(what string, all []bars) string {
	const (
		high, gap    = 11, 16
		left, decade = 300, 140 // where bars begin that take as long as ours; the length of ten times as long
		least, most  = 0.1, 300.0
	)
	var b strings.Builder
	y := 50
	for _, g := range all {
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(g.name))
		y += 6
		for _, v := range g.value {
			if math.IsNaN(v.by) {
				continue
			}
			length := decade * math.Log10(min(max(v.by, least), most)/least)
			color := "#bbbbbb"
			if strings.HasPrefix(v.name, "ours") {
				color = "#2060b0"
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-decade-8, y+high-2, html.EscapeString(v.name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/>`, left-decade, y, length, high-1, color)
			fmt.Fprintf(&b, `<text x="%.0f" y="%d" font-size="9">%.2f</text>`+"\n", left-decade+length+3, y+high-2, v.by)
			y += high
		}
		y += gap
	}
	width := left + int(decade*math.Log10(most)) + 60
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="10">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/><text x="10" y="21">%s by ours, round trip %v; each line ten times the one before; longer is slower</text>`+"\n", width, y, what, rtts[len(rtts)-1].Round(time.Millisecond))
	for n := range 4 {
		x := left + (n-1)*decade
		head += fmt.Sprintf(`<line x1="%d" x2="%d" y1="30" y2="%d" stroke="#888" stroke-dasharray="3 3"/><text x="%d" y="36">%g</text>`+"\n", x, x, y, x+3, math.Pow(10, float64(n-1)))
	}
	return head + b.String() + "</svg>\n"
}
