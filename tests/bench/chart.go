package main

import (
	"fmt"
	"html"
	"strings"
)

// chart draws, for each step, a bar for each FUSE daemon and the kernel's
// overlayfs: its time by that of fuse-overlayfs, which is the line at 1. A bar
// that does not fit is cut and says its length.
func (r *report) chart() string {
	const (
		bar, gap  = 9, 14    // heights
		left, one = 330, 260 // where bars begin; the length of 1
		most      = 2.0
		width     = left + int(one*most) + 60
	)
	peer := r.kind("fuse-overlayfs")
	colors := map[string]string{"overlayfs": "#bbbbbb", "mergerfs": "#e0a030", "go-fuse": "#c9b8d8", "original": "#c05040",
		"ours-overlay": "#2060b0", "ours-migrate": "#60a0e0"}
	var shown []*kind
	for _, k := range r.kinds {
		if colors[k.name] != "" {
			shown = append(shown, k)
		}
	}
	var b strings.Builder
	y := 50
	for i := range r.rows {
		row := &r.rows[i]
		if _, ok := row.ratio(peer, peer); !ok {
			continue
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, y+len(shown)*bar/2+4,
			html.EscapeString(row.load+": "+row.step.name))
		for _, k := range shown {
			if v, ok := row.ratio(k, peer); ok {
				length := one * min(v, most)
				fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/>`, left, y, length, bar-1, colors[k.name])
				fmt.Fprintf(&b, `<text x="%.0f" y="%d" font-size="8">%.2f</text>`+"\n", left+length+3, y+bar-2, v)
			}
			y += bar
		}
		y += gap
	}
	var head strings.Builder
	fmt.Fprintf(&head, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, y)
	fmt.Fprintf(&head, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	x := 10
	for _, k := range shown {
		fmt.Fprintf(&head, `<rect x="%d" y="12" width="10" height="10" fill="%s"/><text x="%d" y="21">%s</text>`+"\n", x, colors[k.name], x+14, k.name)
		x += 110
	}
	fmt.Fprintf(&head, `<line x1="%d" x2="%d" y1="36" y2="%d" stroke="#888" stroke-dasharray="3 3"/><text x="%d" y="40">fuse-overlayfs = 1; shorter is faster</text>`+"\n",
		left+one, left+one, y, left+one+6)
	return head.String() + b.String() + "</svg>\n"
}
