package main

import (
	"fmt"
	"io"
	"math"
	"time"
)

var stageNames = [stages]string{"first instruction", "a hundredth read", "all here"}

// restorePage is docs/performance-restore.md.
func (r *report) restorePage(w io.Writer) {
	fmt.Fprintf(w, `# Performance of a move

Written by `+"`make bench%s`"+` (%s, %d runs): %s.
A process has %d open files of noise, all together as large as the heading says. It is dumped with CRIU on one host and goes
on on another, where nothing of it is, and reads a hundredth of each file from its offset on, which is checked. Both hosts are
namespaces of one machine; what goes from one to the other goes through a proxy that makes a round trip take longer, to sshd with
internal-sftp. The source's files are warm. What each row does is in `+"`tests/bench/restore.go`"+`.

![time to the first instruction, round trip %v](performance-restore.svg)

Seconds, medians, since the dump was done: to the first instruction (the process's own first act on the second host, by the
clock it looks at then, not CRIU's return); until it has read its part; until the first host can be switched off. MiB are what
had come over the link by then, ssh's own and the images included, whose size, with the process's memory, is in the heading.
"Ours, of it" is the median of our time by this one's in the same run, less is better. Waits are the round trips before the first
instruction, by what the longer link took more. What took more than %v was measured once.

LazyFS itself cannot run: it needs a CRIU that was patched ten years ago. What it does is done for it, with the CRIU that all have:
the images come by scp, and each file, whole, by an scp of its own when the process first reads of it. sshfs never has all there.
`, r.cfg.part(), r.began.Format("2006-01-02"), r.cfg.runs, machine(), heldFiles, rtts[len(rtts)-1], tooSlow)
	r.restoreTargets(w)
	r.restoreTable(w)
}

// restoreTargets holds what was found against what was promised.
func (r *report) restoreTargets(w io.Writer) {
	fmt.Fprintf(w, "\n## Against the targets\n\nFirst instruction at most a tenth of rsync's time with 1 GiB, and sooner than with sshfs and fuse-overlayfs; with no more than 1.2 of the bytes that the process touches.\n\n"+
		"| | of rsync's time | of sshfs + fuse-overlayfs's | bytes, of what is touched |\n|---|--:|--:|--:|\n")
	for i := range r.restores {
		d := &r.restores[i]
		bytes := float64(max(0, d.down["ours"][firstAct]-d.images)) / float64(d.size/heldPart+d.program)
		fmt.Fprintf(w, "| %s, %v | %s | %s | %.2f |\n", sizeOf(d.size), d.rtt, d.oursOf(hops[1].name, firstAct), d.oursOf(hops[2].name, firstAct), bytes)
	}
	fmt.Fprintln(w, "\nBytes are those that came before the first instruction but for the images; the process touches what it then reads of its files, and of its program what was in its memory when it was dumped.")
}

func (r *report) restoreTable(w io.Writer) {
	for i := range r.restores {
		d := &r.restores[i]
		fmt.Fprintf(w, "\n## %s of open files, round trip %v, images %.1f MiB\n\n| | %s: s | ours, of it | MiB |", sizeOf(d.size), d.rtt, mib(d.images), stageNames[firstAct])
		for _, name := range stageNames[partRead:] {
			fmt.Fprintf(w, " %s: s | MiB |", name)
		}
		near := r.restoreOver(d.size, rtts[0])
		if d != near {
			fmt.Fprintf(w, " waits |")
		}
		fmt.Fprintf(w, "\n|---|--:|--:|--:|--:|--:|--:|--:|")
		if d != near {
			fmt.Fprintf(w, "--:|")
		}
		fmt.Fprintln(w)
		for _, h := range hops {
			took, down := d.took[h.name], d.down[h.name]
			if len(took[firstAct]) == 0 {
				continue
			}
			fmt.Fprintf(w, "| %s | %.3f | %s | %.1f |", h.name, median(took[firstAct]), d.oursOf(h.name, firstAct), mib(down[firstAct]))
			for st := partRead; st < stages; st++ {
				if len(took[st]) == 0 {
					fmt.Fprintf(w, "  |  |")
					continue
				}
				fmt.Fprintf(w, " %.3f | %.1f |", median(took[st]), mib(down[st]))
			}
			if d != near {
				more := median(took[firstAct]) - median(near.took[h.name][firstAct])
				fmt.Fprintf(w, " %.0f |", max(0, more/(d.rtt-near.rtt).Seconds()))
			}
			fmt.Fprintln(w)
		}
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func sizeOf(n int64) string {
	if n >= 1<<30 && n%(1<<30) == 0 {
		return fmt.Sprintf("%d GiB", n>>30)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// restoreOver returns what was found of a size over a link.
func (r *report) restoreOver(size int64, rtt time.Duration) *hopped {
	for i := range r.restores {
		if d := &r.restores[i]; d.size == size && d.rtt == rtt {
			return d
		}
	}
	return nil
}

// oursOf is the median over the runs of our time by that of the way called name.
func (d *hopped) oursOf(name string, st stage) string {
	v := byOurs(d.took[name][st], d.took["ours"][st])
	if math.IsNaN(v) || name == "ours" {
		return ""
	}
	return fmt.Sprintf("%.2f", 1/v)
}

// restoreChart draws a bar for each way and size over the longest link.
func (r *report) restoreChart() string {
	var all []bars
	for i := range r.restores {
		d := &r.restores[i]
		if d.rtt != rtts[len(rtts)-1] {
			continue
		}
		g := bars{name: sizeOf(d.size) + " of open files"}
		for _, h := range hops {
			g.value = append(g.value, bar{h.name, byOurs(d.took[h.name][firstAct], d.took["ours"][firstAct])})
		}
		all = append(all, g)
	}
	return barChart("time to the first instruction", all)
}
