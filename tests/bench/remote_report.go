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
func (d *told) by(name string) float64 {
	var v []float64
	for i, t := range d.took[name] {
		if i < len(d.took["ours"]) {
			v = append(v, t/d.took["ours"][i])
		}
	}
	return median(v)
}

// remoteChart draws a bar for each way and errand over the longest link: its time by
// ours, on a scale on which each step is ten times the one before.
func (r *report) remoteChart() string {
	const (
		bar, gap     = 11, 16
		left, decade = 300, 140 // where bars begin that take as long as ours; the length of ten times as long
		least, most  = 0.1, 300.0
	)
	var b strings.Builder
	y := 50
	each := len(r.remotes) / len(rtts)
	for i := range r.remotes[len(r.remotes)-each:] {
		d := &r.remotes[len(r.remotes)-each+i]
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(d.errand))
		y += 6
		for _, w := range ways {
			v := d.by(w.name)
			if math.IsNaN(v) {
				continue
			}
			length := decade * math.Log10(min(max(v, least), most)/least)
			color := "#bbbbbb"
			if strings.HasPrefix(w.name, "ours") {
				color = "#2060b0"
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-decade-8, y+bar-2, html.EscapeString(w.name))
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/>`, left-decade, y, length, bar-1, color)
			fmt.Fprintf(&b, `<text x="%.0f" y="%d" font-size="9">%.2f</text>`+"\n", left-decade+length+3, y+bar-2, v)
			y += bar
		}
		y += gap
	}
	width := left + int(decade*math.Log10(most)) + 60
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="10">`+"\n"+
		`<rect width="100%%" height="100%%" fill="white"/><text x="10" y="21">time by ours, round trip %v; each line ten times the one before; longer is slower</text>`+"\n", width, y, rtts[len(rtts)-1].Round(time.Millisecond))
	for n := range 4 {
		x := left + (n-1)*decade
		head += fmt.Sprintf(`<line x1="%d" x2="%d" y1="30" y2="%d" stroke="#888" stroke-dasharray="3 3"/><text x="%d" y="36">%g</text>`+"\n", x, x, y, x+3, math.Pow(10, float64(n-1)))
	}
	return head + b.String() + "</svg>\n"
}
