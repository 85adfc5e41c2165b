package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report collects what was measured.
type report struct {
	cfg      *config
	kinds    []*kind
	began    time.Time
	took     time.Duration
	rows     []row
	memory   map[*kind]memoryUse
	drains   []moved
	remotes  []told
	restores []hopped
}

// row is one step of one load on all mounts.
type row struct {
	load   string
	step   *step
	figure map[*kind][]figure
	count  map[*kind]count
}

func (r *report) add(l *load, res *results) {
	for i := range l.steps {
		r.rows = append(r.rows, row{l.name, &l.steps[i], res.figures[i], res.counts[i]})
	}
}

// median of the wall times of k, or of another figure; negative if there is none.
func (r *row) median(k *kind, of func(figure) time.Duration) time.Duration {
	var v []float64
	for _, f := range r.figure[k] {
		v = append(v, float64(of(f)))
	}
	if len(v) == 0 {
		return -1
	}
	return time.Duration(median(v))
}

func wall(f figure) time.Duration { return f.wall }
func cpu(f figure) time.Duration  { return f.cpu }

// ratio is the median over the runs of k's time by that of peer in the same run.
func (r *row) ratio(k, peer *kind) (float64, bool) {
	var v []float64
	for i := range min(len(r.figure[k]), len(r.figure[peer])) {
		v = append(v, float64(r.figure[k][i].wall)/float64(r.figure[peer][i].wall))
	}
	return median(v), len(v) > 0
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *report) kind(name string) *kind {
	i := slices.IndexFunc(r.kinds, func(k *kind) bool { return k.name == name })
	if i < 0 {
		return nil
	}
	return r.kinds[i]
}

// table prints what was found of one load, as soon as it was.
func (r *report) table(out io.Writer, l *load) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	for i := range r.rows {
		row := &r.rows[i]
		if row.load != l.name {
			continue
		}
		fmt.Fprintf(w, "%s\tms\tof %s\tdaemon µs/op\trequests/op\tcalls/op\t\n", row.step.name, r.kinds[0].name)
		for _, k := range r.kinds {
			ratio, ok := row.ratio(k, r.kinds[0])
			if !ok {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\t%s\t%s\t\n", k.name, ms(row.median(k, wall)), ratio, row.perOp(k), row.requests(k), row.calls(k))
		}
		for _, k := range r.kinds {
			if c, ok := row.count[k]; ok && r.cfg.detail {
				w.Flush()
				fmt.Fprintf(out, "    %s: %s / %s\n", k.name, row.most(c.requests), row.most(c.calls))
			}
		}
	}
}

func ms(d time.Duration) string {
	switch v := float64(d) / 1e6; {
	case d < 0:
		return ""
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// perOp is the daemon's processor time for one operation, in microseconds.
func (r *row) perOp(k *kind) string {
	if k.args == nil || len(r.figure[k]) == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", float64(r.median(k, cpu))/1e3/float64(r.step.ops))
}

func (r *row) requests(k *kind) string {
	if c, ok := r.count[k]; ok {
		return fmt.Sprintf("%.2f", float64(sum(c.requests))/float64(r.step.ops))
	}
	return ""
}

func (r *row) calls(k *kind) string {
	if c, ok := r.count[k]; ok {
		return fmt.Sprintf("%.2f", float64(sum(c.calls))/float64(r.step.ops))
	}
	return ""
}

// most lists what there is more than a hundredth of an operation of.
func (r *row) most(m map[string]int) string {
	var parts []string
	for _, name := range slices.SortedFunc(maps.Keys(m), func(a, b string) int { return m[b] - m[a] }) {
		if n := float64(m[name]) / float64(r.step.ops); n >= 0.01 {
			parts = append(parts, fmt.Sprintf("%s %.2f", name, n))
		}
	}
	return strings.Join(parts, ", ")
}

func (r *report) memoryTable(w io.Writer) {
	const mib = 1 << 20
	fmt.Fprintf(w, "\n| mount | before, MiB | after, MiB | bytes a file | 3 s after drop_caches, MiB | 10 s after, MiB |\n|---|--:|--:|--:|--:|--:|\n")
	for _, k := range r.kinds {
		if u, ok := r.memory[k]; ok {
			fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %d |\n", k.name, u.before/mib, u.after/mib, (u.after-u.before)/int64(u.files), u.dropped/mib, u.later/mib)
		}
	}
}

// write writes performance.md and its chart into dir.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "performance.svg"), []byte(r.chart()), 0o644); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "performance.md"))
	if err != nil {
		return err
	}
	defer f.Close()
	r.page(f)
	return f.Close()
}

// writePage writes a page of its own, and its chart.
func writePage(dir, name string, page func(w io.Writer), chart string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var text bytes.Buffer
	page(&text)
	if err := os.WriteFile(filepath.Join(dir, name+".svg"), []byte(chart), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".md"), text.Bytes(), 0o644)
}

// page is docs/performance.md.
func (r *report) page(w io.Writer) {
	fmt.Fprintf(w, `# Performance

Written by `+"`make bench%s`"+` (%s, took %v, %d runs): %s.
Every figure comes from one run of all mounts, one after another, over and over; ratios are medians of the pairs.
Layers are directories of one ext4 image, warm unless a row says cold; what each row does is in `+"`tests/bench`"+`.

![time, by that of fuse-overlayfs](performance.svg)

## Against the targets

Our time by that of the peer in the same run; less is better.

| work | against | at most | overlay mode | migrate mode | the same, entry_timeout=1 | without an upper |
|---|---|--:|--:|--:|--:|--:|
`, r.cfg.part(), r.began.Format("2006-01-02"), r.took.Round(time.Second), r.cfg.runs, machine())
	for _, t := range targets {
		r.target(w, t)
	}
	fmt.Fprint(w, limits)
	fmt.Fprintf(w, "\n## Time\n\nMilliseconds, medians.\n\n")
	r.matrix(w, func(row *row, k *kind) string { return ms(row.median(k, wall)) }, nil)
	daemons := func(k *kind) bool { return k.args != nil }
	fmt.Fprintf(w, "\n## The daemon's processor time\n\nMicroseconds for each file, entry or call.\n\n")
	r.matrix(w, (*row).perOp, daemons)
	if r.cfg.counts {
		fmt.Fprintf(w, "\n## FUSE requests / system calls of the daemon\n\nFor each file, entry or call; counted in a pass of its own. Waiting, and reading and answering requests, is not in the calls.\n\n")
		r.matrix(w, func(row *row, k *kind) string {
			if row.requests(k) == "" {
				return ""
			}
			return row.requests(k) + " / " + row.calls(k)
		}, daemons)
	}
	if r.memory != nil {
		fmt.Fprintf(w, "\n## Memory\n\nResident memory of the daemon around a walk over a million files, and after the kernel was told to forget them.\n")
		r.memoryTable(w)
	}
	if r.drains != nil {
		fmt.Fprintf(w, "\n## Moving a tree to another filesystem\n\nUntil it is durable. `drain` removes the old files, too, each when its copy is durable.\n")
		r.drainTable(w)
	}
}

// limits is what stands in the way of the targets that are missed.
const limits = `
Of a lower file there are two kinds of warm. The first read through a mount finds the file in the cache of the lower's
filesystem, and each page is asked of the daemon; "again" finds it in the cache of the mount, and nobody is asked. What
the same library needs for a plain directory, if the kernel does not read files by itself (which it cannot do for files
that an upper may replace), is in the column go-fuse-plain. What was found of the limits is in ARCHITECTURE.md, "What a
request costs": a first sequential read and a second one are bound by FUSE's page cache, which has pages of 4 KiB where
ext4 has large folios, and random reads and lookups by the switches from the program to the daemon and back.
`

// target is a line of the promise about speed.
type target struct {
	load, step string // step: a part of its name
	peer       string
	most       float64
	unchanging bool // of what no upper can change
}

var targets = []target{
	{"read-upper", "sequential read", "ext4", 1.05, false},
	{"write-upper", "sequential write", "ext4", 1.05, false},
	{"read-lower", "sequential read", "ext4", 2.2, false},
	{"read-lower", "sequential read again", "ext4", 2.2, false},
	{"read-lower", "random 4 KiB reads", "ext4", 2.2, false},
	{"read-lower", "random 4 KiB reads again", "ext4", 2.2, false},
	{"read-lower", "sequential read", "ext4", 1.11, true},
	{"read-lower", "random 4 KiB reads", "ext4", 1.11, true},
	{"small", "create", "fuse-overlayfs", 0.8, false},
	{"small", "create", "mergerfs", 1.2, false},
	{"small", "stat", "fuse-overlayfs", 0.8, false},
	{"small", "stat", "mergerfs", 1.2, false},
	{"small", "unlink", "fuse-overlayfs", 0.8, false},
	{"small", "unlink", "mergerfs", 1.2, false},
	{"untar", "tar", "fuse-overlayfs", 0.8, false},
	{"untar", "tar", "mergerfs", 1.2, false},
	{"git", "second", "fuse-overlayfs", 0.8, false},
	{"git", "second", "mergerfs", 1.2, false},
	{"bigdir", "stat, first", "overlayfs", 2, false},
	{"reflink", "first byte", "ext4", 2, false},
	{"copyup-xfs", "1 GiB", "ext4", 2, false},
	{"copyup-btrfs", "1 GiB", "ext4", 2, false},
}

func (r *report) target(w io.Writer, t target) {
	peer := r.kind(t.peer)
	for i := range r.rows {
		row := &r.rows[i]
		if peer == nil || row.load != t.load || !strings.Contains(row.step.name, t.step) {
			continue
		}
		fmt.Fprintf(w, "| %s: %s | %s | %.2f |", row.load, row.step.name, t.peer, t.most)
		for _, name := range []string{"ours-overlay", "ours-migrate", "ours-migrate-1s", "ours-readonly"} {
			cell := ""
			if k := r.kind(name); k != nil && k.readOnly == t.unchanging {
				if v, ok := row.ratio(k, peer); ok {
					cell = fmt.Sprintf("%.2f", v)
					if v > t.most {
						cell = "**" + cell + "**"
					}
				}
			}
			fmt.Fprintf(w, " %s |", cell)
		}
		fmt.Fprintln(w)
		return
	}
}

// matrix prints one cell for each row and mount.
func (r *report) matrix(w io.Writer, cell func(*row, *kind) string, only func(*kind) bool) {
	fmt.Fprintf(w, "| |")
	line := "|---|"
	for _, k := range r.kinds {
		if only == nil || only(k) {
			fmt.Fprintf(w, " %s |", k.name)
			line += "--:|"
		}
	}
	fmt.Fprintln(w, "\n"+line)
	for i := range r.rows {
		row := &r.rows[i]
		fmt.Fprintf(w, "| %s: %s |", row.load, row.step.name)
		for _, k := range r.kinds {
			if only == nil || only(k) {
				fmt.Fprintf(w, " %s |", cell(row, k))
			}
		}
		fmt.Fprintln(w)
	}
}

// machine is what the figures were taken on, and of what.
func machine() string {
	say := func(sh string) string {
		out, _ := exec.Command("sh", "-c", sh).CombinedOutput()
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return line
	}
	parts := []string{
		"Linux " + say("uname -r"),
		say("nproc") + " processors (" + say("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1") + ")",
		say("sed -n 's/^MemTotal: *//p' /proc/meminfo") + " of memory",
		say(". /etc/os-release; echo $PRETTY_NAME"),
		say("fuse-overlayfs --version 2>/dev/null | grep -m 1 'overlayfs.*[0-9]'"),
		say("mergerfs --version | head -n 1"),
		"go-fuse " + say("go list -m -f '{{.Version}}' github.com/hanwen/go-fuse/v2"),
		say("git describe --always --dirty | sed 's/^/migratefs /'"),
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}
