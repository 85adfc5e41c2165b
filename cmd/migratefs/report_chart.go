package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/migratefs/migratefs/internal/control"
)

// Charts are drawn from numbers alone, in coordinates of their own (1000 wide), which
// the browser stretches; all text stands beside them, so that it can be read at any width.

type reportChart struct {
	Title, Said string // Said is for who does not see it
	Top, Middle string // of the scale
	Series      []reportSeries
	Times       []string
}

type reportSeries struct{ Class, Name, Last, Path string }

type reportStrip struct {
	Title, Said string
	Parts       []reportBox
	Legend      []reportKey
	Times       []string
}

type reportKey struct{ Class, Name string }

type reportBox struct {
	X, Y, Width, Height, Class, Title string
}

type reportLatency struct {
	Name, Count, Average, Half, Most, All, Said string

	Wide int
	Bars []reportBox
}

// samples are those of the past, and one of now.
func (r *reportData) samples() []control.Sample {
	st := r.seen.status
	a := &st.Activity
	now := control.Sample{
		When: r.now, State: st.State, Here: st.Fill.Here, Missing: st.Fill.Missing, Files: st.Fill.Files,
		Fetched: a.Fetched, CopyUps: a.CopyUps, Copied: a.Copied, Requests: a.Requests, Failures: failedCount(a),
	}
	if st.Drained != nil {
		now.Drained = st.Drained.Bytes
	}
	for i := range st.Layers {
		if l := &st.Layers[i]; l.Source != nil && !l.Reachable {
			now.Away++
		}
	}
	// The first moment is known without a look: nothing was done yet.
	all := []control.Sample{}
	if len(r.history.Samples) == 0 || r.history.Samples[0].When.Sub(st.Started) > time.Second {
		first := control.Sample{When: st.Started, State: st.State}
		if len(r.history.Samples) > 0 {
			first.State, first.Here, first.Missing = r.history.Samples[0].State, r.history.Samples[0].Here, r.history.Samples[0].Missing
		}
		all = append(all, first)
	}
	for _, s := range append(slices.Clone(r.history.Samples), now) {
		// A clock that was put back would draw lines to the left.
		if len(all) == 0 || s.When.After(all[len(all)-1].When) {
			all = append(all, s)
		}
	}
	return all
}

// drawOver draws how it was over time.
func (r *reportData) drawOver(p *reportPage) {
	all := r.samples()
	if len(all) < 2 {
		p.Quiet = "It was mounted just now."
		return
	}
	if p.Source {
		p.Strip = strip(all)
	}
	of := func(f func(*control.Sample) float64) []float64 {
		values := make([]float64, len(all))
		for i := range all {
			values[i] = max(f(&all[i]), 0)
		}
		return values
	}
	inBytes := func(v float64) string { return bytesText(int64(v)) }
	type line struct {
		name   string
		values []float64
	}
	draw := func(title, unit string, text func(float64) string, lines ...line) {
		c := reportChart{Title: title, Times: timeScale(all)}
		most := 0.0
		for _, l := range lines {
			most = max(most, slices.Max(l.values))
		}
		if most == 0 {
			return
		}
		top := roundUp(most, unit == "bytes")
		c.Top, c.Middle = text(top), text(top/2)
		said := []string{}
		for i, l := range lines {
			last := text(l.values[len(l.values)-1])
			c.Series = append(c.Series, reportSeries{fmt.Sprintf("s%d", i+1), l.name, last, linePath(all, l.values, top)})
			said = append(said, fmt.Sprintf("%s: at most %s, now %s", l.name, text(slices.Max(l.values)), last))
		}
		c.Said = title + ". " + strings.Join(said, "; ")
		p.Charts = append(p.Charts, c)
	}
	if p.Source {
		draw("Files that were changed here before all of them had come", "bytes", inBytes,
			line{"here", of(func(s *control.Sample) float64 { return float64(s.Here) })},
			line{"missing", of(func(s *control.Sample) float64 { return float64(s.Missing) })})
	}
	lines := []line{}
	for _, l := range []line{
		{"copied up", of(func(s *control.Sample) float64 { return float64(s.Copied) })},
		{"fetched", of(func(s *control.Sample) float64 { return float64(s.Fetched) })},
		{"drained", of(func(s *control.Sample) float64 { return float64(s.Drained) })},
	} {
		if slices.Max(l.values) > 0 {
			lines = append(lines, l)
		}
	}
	if len(lines) > 0 {
		draw("Moved since the mount", "bytes", inBytes, lines...)
	}
	draw("Requests a second", "", perSecond,
		line{"requests", rates(all, func(s *control.Sample) uint64 { return s.Requests })},
		line{"failed", rates(all, func(s *control.Sample) uint64 { return s.Failures })})
	if len(lines) == 0 {
		p.Quiet = "Nothing has moved since it was mounted."
	}
}

func perSecond(v float64) string {
	if v > 0 && v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return numberText(uint64(v))
}

// rates are differences of counts, a second.
func rates(all []control.Sample, of func(*control.Sample) uint64) []float64 {
	values := make([]float64, len(all))
	for i := 1; i < len(all); i++ {
		if a, b := of(&all[i-1]), of(&all[i]); b > a {
			values[i] = float64(b-a) / max(all[i].When.Sub(all[i-1].When).Seconds(), 0.001)
		}
	}
	values[0] = values[1]
	return values
}

// roundUp is the top of a scale: 1, 2 or 5 of a power of ten, or a power of two.
func roundUp(v float64, binary bool) float64 {
	if binary {
		return math.Max(math.Exp2(math.Ceil(math.Log2(v))), 2)
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, step := range []float64{1, 2, 5} {
		if v <= step*power {
			return step * power
		}
	}
	return 10 * power
}

// across is where a moment lies, from 0 to 1000.
func across(all []control.Sample, t time.Time) float64 {
	first, last := all[0].When, all[len(all)-1].When
	return float64(t.Sub(first)) / float64(last.Sub(first)) * 1000
}

// linePath draws values from 0, below, to top.
func linePath(all []control.Sample, values []float64, top float64) string {
	var b strings.Builder
	for i, v := range values {
		fmt.Fprintf(&b, "%c%.1f %.2f", "ML"[min(i, 1)], across(all, all[i].When), 100-min(v/top, 1)*100)
	}
	return b.String()
}

// timeScale is the first moment, the middle and the last.
func timeScale(all []control.Sample) []string {
	first, last := all[0].When.Local(), all[len(all)-1].When.Local()
	layout := "15:04:05"
	if last.Sub(first) > 20*time.Hour {
		layout = "Jan 2 15:04"
	}
	return []string{first.Format(layout), first.Add(last.Sub(first) / 2).Format(layout), last.Format(layout)}
}

// strip draws which states there were, and when a source was away. A state is that of
// the time until the sample that tells it.
func strip(all []control.Sample) *reportStrip {
	s := &reportStrip{Title: "State", Times: timeScale(all)}
	said, known := []string{}, map[string]bool{}
	legend := func(class, name string) {
		if !known[class] {
			known[class] = true
			s.Legend = append(s.Legend, reportKey{class, name})
		}
	}
	box := func(from, to time.Time, y, height int, class string) {
		x := across(all, from)
		s.Parts = append(s.Parts, reportBox{
			X: fmt.Sprintf("%.1f", x), Width: fmt.Sprintf("%.1f", across(all, to)-x), Y: fmt.Sprint(y), Height: fmt.Sprint(height), Class: class,
		})
	}
	for i := 1; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1].State == all[i].State {
			j++
		}
		if class := stateClass(all[i].State); class != "" {
			box(all[i-1].When, all[j].When, 0, 10, class)
			legend(class, class)
			said = append(said, class)
		}
		i = j + 1
	}
	for i := 1; i < len(all); i++ {
		if all[i].Away > 0 {
			box(all[i-1].When, all[i].When, 6, 4, "gone")
			legend("gone", "a source was away")
		}
	}
	s.Said = "It was " + strings.Join(said, ", then ")
	if known["gone"] {
		s.Said += "; a source was away for a while"
	}
	return s
}

// lapse is a short time, in seconds.
func lapse(s float64) string {
	switch {
	case s <= 0:
		return "0 s"
	case s < 0.001:
		return fmt.Sprintf("%.0f µs", s*1e6)
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1e3)
	case s < 60:
		return fmt.Sprintf("%.3g s", s)
	}
	return spanText(s)
}

// latent is how long things took, those that took most time in all first.
func (r *reportData) latent(p *reportPage) {
	l := &r.latencies
	if len(l.Bounds) == 0 {
		return
	}
	p.Span = "From " + lapse(l.Bounds[0]) + " to over " + lapse(l.Bounds[len(l.Bounds)-1])
	add := func(name string, h *control.Latency) {
		if row := latency(name, l.Bounds, h); row != nil {
			p.Latencies = append(p.Latencies, *row)
		}
	}
	add("copy-ups", &l.CopyUps)
	add("waits for a source", &l.Fetches)
	kinds := make([]string, 0, len(l.Requests))
	for kind := range l.Requests {
		kinds = append(kinds, kind)
	}
	slices.SortFunc(kinds, func(a, b string) int {
		if x, y := l.Requests[a].Seconds, l.Requests[b].Seconds; x != y {
			return int(math.Copysign(1, y-x))
		}
		return strings.Compare(a, b)
	})
	for _, kind := range kinds {
		h := l.Requests[kind]
		add("request: "+kind, &h)
	}
}

// latency is a histogram as it is shown; nil if there is nothing in it.
func latency(name string, bounds []float64, h *control.Latency) *reportLatency {
	counts := h.Counts[:min(len(h.Counts), len(bounds)+1)]
	total, most := uint64(0), uint64(0)
	for _, n := range counts {
		total, most = total+n, max(most, n)
	}
	if total == 0 {
		return nil
	}
	within := func(i int) string {
		if i < len(bounds) {
			return lapse(bounds[i])
		}
		return "over " + lapse(bounds[len(bounds)-1])
	}
	share := func(part float64) string {
		sum := uint64(0)
		for i, n := range counts {
			if sum += n; float64(sum) >= part*float64(total) {
				return within(i)
			}
		}
		return within(len(bounds))
	}
	row := &reportLatency{
		Name: onLine(name), Count: numberText(total), Average: lapse(h.Seconds / float64(total)), Half: share(0.5), Most: share(0.99), All: lapse(h.Seconds),
		Wide: len(counts) * 10,
	}
	said := []string{}
	for i, n := range counts {
		height, class := 1.0, "none"
		if n > 0 {
			height, class = max(float64(n)/float64(most)*24, 2), ""
			said = append(said, fmt.Sprintf("%s: %s", within(i), numberText(n)))
		}
		row.Bars = append(row.Bars, reportBox{
			X: fmt.Sprint(i*10 + 1), Y: fmt.Sprintf("%.1f", 24-height), Height: fmt.Sprintf("%.1f", height), Class: class,
			Title: within(i) + ": " + numberText(n),
		})
	}
	row.Said = strings.Join(said, ", ")
	return row
}
