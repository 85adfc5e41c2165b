package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

// showMount prints how a mount is, as people read it.
func showMount(out io.Writer, s *seenMount, now time.Time) {
	for _, line := range mountLines(s, now, false) {
		fmt.Fprintln(out, line)
	}
}

// mountLines is how a mount is, as people read it; drawn says that the bar of its
// filling is drawn by somebody else. What is in the lines comes from a daemon, which may
// be another user's.
func mountLines(s *seenMount, now time.Time, drawn bool) (lines []string) {
	if s.status == nil {
		return []string{onLine(shownName(s.point) + "  " + s.why())}
	}
	lines = append(lines, onLine(headline(s)))
	for _, r := range statusRows(s.status, now, drawn) {
		lines = append(lines, onLine(strings.TrimRight(fmt.Sprintf("  %-10s %s", r.name, r.text), " ")))
	}
	return lines
}

// shownName is a name from mountinfo, on its line.
func shownName(s string) string { return quotedText(s) }

func headline(s *seenMount) string {
	st := s.status
	point := shownName(s.point)
	if s.elsewhere {
		point = s.point
	}
	text := point + "  " + st.Mode
	if st.Hosts != "" {
		text += ", hosts=" + st.Hosts
	}
	if st.State != "" {
		text += ", " + st.State
	}
	if s.elsewhere {
		text += fmt.Sprintf("  (not mounted in this mount namespace, but in that of process %d)", st.PID)
	}
	return text
}

// row is one line below the name of a mount.
type row struct{ name, text string }

func statusRows(st *control.Status, now time.Time, drawn bool) (rows []row) {
	add := func(name, format string, args ...any) {
		rows = append(rows, row{name, fmt.Sprintf(format, args...)})
	}
	add("daemon", "process %d, version %s, up %s, %s of memory", st.PID, st.Version, spanText(st.Uptime), bytesText(st.Activity.Memory))
	for i := range st.Layers {
		add(st.Layers[i].Role, "%s", layerText(&st.Layers[i]))
	}
	rows = append(rows, fillRows(st, now, drawn)...)
	if p := st.Memory; p != nil {
		add("memory", "%s", (&pagesState{Total: p.Total, Missing: p.Missing, Error: p.Why}).text())
	}
	for i := range st.Drains {
		add("draining", "%s", drainingText(&st.Drains[i]))
	}
	for i := range st.Conflicts {
		c := &st.Conflicts[i]
		name := "conflicts"
		if i > 0 {
			name = ""
		}
		add(name, "/%s: %s, %s written here", c.Path, c.Why, bytesText(c.Written))
	}
	if more := st.Fill.Conflicts - len(st.Conflicts); more > 0 && len(st.Conflicts) > 0 {
		add("", "and %d more", more)
	}
	if st.Fill.Conflicts > 0 {
		add("", "'migratefs resolve' decides about them")
	}
	if a := &st.Activity; a.CopyUps > 0 || a.CopyUpsFailed > 0 || a.Removals > 0 {
		text := fmt.Sprintf("%s, %s", countText(a.CopyUps, "file", "files"), bytesText(a.Copied))
		if a.CopyUpsFailed > 0 {
			text += fmt.Sprintf("; %d failed", a.CopyUpsFailed)
		}
		if a.Removals > 0 {
			text += fmt.Sprintf("; %s still to be removed", countText(uint64(a.Removals), "lower copy", "lower copies"))
		}
		add("copied up", "%s", text)
	}
	if d := st.Drained; d != nil {
		add("drained", "%s, %s by 'migratefs drain', the last %s ago", countText(uint64(d.Files), "file", "files"), bytesText(d.Bytes), spanText(now.Sub(d.When).Seconds()))
	}
	if c := st.Cache; c != nil {
		add("cache", "%s", cacheText(c))
	}
	add("requests", "%s", requestsText(&st.Activity))
	add("open", "%s, %s known to the kernel", countText(uint64(st.Activity.Handles), "file", "files"), countText(uint64(st.Activity.Inodes), "inode", "inodes"))
	if len(st.Losses) > 0 {
		add("left out", "%s", lossText(st.Losses))
	}
	if st.Settings.FillRate != nil && *st.Settings.FillRate > 0 {
		add("set", "fill_rate=%s/s", bytesText(*st.Settings.FillRate))
	}
	if st.LastError != "" && st.LastWhen != nil {
		add("last error", "%s ago: %s", spanText(now.Sub(*st.LastWhen).Seconds()), st.LastError)
	}
	return rows
}

// drainingText is how far a drain is that runs beside the mount.
func drainingText(d *control.Drain) string {
	text := drainText(d)
	if d.Shard != "" {
		text = "shard " + shownName(d.Shard) + ": " + text
	}
	if d.PID != 0 {
		text += fmt.Sprintf(" (process %d)", d.PID)
	}
	return text
}

// lossText tells of extended attributes that did not come up.
func lossText(losses map[string]uint64) string {
	const some = 5
	var parts []string
	for i, name := range slices.Sorted(maps.Keys(losses)) {
		if i == some {
			parts = append(parts, fmt.Sprintf("and %d more", len(losses)-some))
			break
		}
		parts = append(parts, fmt.Sprintf("%s (%d)", shownName(name), losses[name]))
	}
	return "extended attributes that copies lack: " + strings.Join(parts, ", ")
}

func layerText(l *control.Layer) string {
	text := string(l.Name)
	if state := layerState(l); state != "" {
		text += ": " + state
	}
	return text
}

// layerState is how a layer is; "" if there is nothing to say of it.
func layerState(l *control.Layer) (text string) {
	switch r := l.Source; {
	case l.Detached:
		return "let go of, it may be switched off"
	case !l.Reachable:
		return "NOT REACHABLE: " + l.Why
	case r != nil:
		text = fmt.Sprintf("reachable, %s", countText(uint64(r.Connections), "connection", "connections"))
		text += fmt.Sprintf(", %s read in %s", bytesText(r.Bytes), countText(uint64(r.RoundTrips), "round trip", "round trips"))
		if r.Connects > int64(r.Connections) { // connections were lost, or there were more
			text += fmt.Sprintf(", logged in %d times", r.Connects)
		}
		if l.TwinFiles > 0 {
			text += fmt.Sprintf("; %s of it, %s, not fetched: this host has the same", countText(uint64(l.TwinFiles), "file", "files"), bytesText(l.TwinBytes))
		}
	case l.Size > 0:
		text = fmt.Sprintf("%s free of %s", bytesText(l.Free), bytesText(l.Size))
	}
	return text
}

// fillRows tell how far pending files are, what has to be here before the source may go,
// and what hangs on it.
func fillRows(st *control.Status, now time.Time, drawn bool) (rows []row) {
	add := func(name, format string, args ...any) {
		rows = append(rows, row{name, fmt.Sprintf(format, args...)})
	}
	f := &st.Fill
	if st.State == "" {
		return nil
	}
	m := migrationOf(st)
	if f.Files > 0 {
		name := "filling"
		if !drawn {
			part, all := progressOf(st)
			add(name, "%s %3d%%  %s of %s", barText(part, all, 24), percent(part, all), bytesText(part), bytesText(all))
			name = ""
		}
		add(name, "%s", fillText(st))
	}
	if m.Looked != nil {
		add("here", "%s of %s, as of %s ago", amountText(m.Here), m.Scope, spanText(now.Sub(*m.Looked).Seconds()))
		add("missing", "%s", amountText(m.Missing))
	}
	switch {
	case m.AtRisk.Files > 0:
		n := uint64(m.AtRisk.Files)
		add("at risk", "if the source died now, %s in %s that %s changed here would be lost",
			bytesText(m.AtRisk.Bytes), countText(n, "file", "files"), wasWere(n))
	default:
		add("at risk", "nothing that was changed here needs the source any more")
	}
	if m.Left > 0 {
		add("left", "%s on the source, which cannot be read here", countText(uint64(m.Left), "name", "names"))
	}
	if n := len(m.Lost); n > 0 {
		l := &m.Lost[n-1]
		add("failed", "%s for want of the source, the last %s ago: /%s, by process %d %s: %s",
			countText(uint64(m.LostReads), "read", "reads"), spanText(now.Sub(l.When).Seconds()), l.Path, l.Pid, l.Process, l.Why)
	}
	return rows
}

// migrationOf is how far the way from the source is, also of a daemon of an older version.
func migrationOf(st *control.Status) *overlay.StateReport {
	if st.Migration != nil {
		return st.Migration
	}
	return &overlay.StateReport{AtRisk: overlay.Amount{Files: int64(st.Fill.Files), Bytes: st.Fill.Missing}}
}

// progressOf is how many bytes are here, and how many shall be: of the drain that is
// under way, or of what was changed here.
func progressOf(st *control.Status) (part, all int64) {
	if m := migrationOf(st); m.Job.Op == "drain" && m.Job.Result == "" {
		return m.Here.Bytes, m.Here.Bytes + m.Missing.Bytes
	}
	return st.Fill.Here, st.Fill.Here + st.Fill.Missing
}

func wasWere(n uint64) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// fillText is how the filling goes: how many files, how fast, how long.
func fillText(st *control.Status) string {
	f := &st.Fill
	text := fmt.Sprintf("%s pending, %d done", countText(uint64(f.Files), "file", "files"), f.Finished)
	switch {
	case f.Waiting:
		return text + ", waiting for the source"
	case !f.Fetching:
		return text + ", nothing is fetched unasked (fill=off)"
	case f.Files == f.Conflicts:
		return text + ", all in conflict"
	case f.Rate > 0:
		return text + fmt.Sprintf(", %s/s, %s left", bytesText(int64(f.Rate)), etaText(st))
	}
	return text
}

// etaText is how long the filling will take at this rate.
func etaText(st *control.Status) string {
	if st.Fill.Rate < 1 {
		return "an unknown time"
	}
	part, all := progressOf(st)
	return spanText(float64(all-part) / st.Fill.Rate)
}

func percent(part, all int64) int64 {
	if all <= 0 {
		return 100
	}
	return int64(float64(part) / float64(all) * 100)
}

// barText is a bar of the given width.
func barText(part, all int64, width int) string {
	n := width
	if all > 0 {
		n = int(float64(part) / float64(all) * float64(width))
	}
	n = min(max(n, 0), width)
	return "[" + strings.Repeat("#", n) + strings.Repeat("-", width-n) + "]"
}

func cacheText(c *control.Cache) string {
	if c.Limit < 0 {
		return "nothing is kept"
	}
	text := bytesText(c.Used)
	if c.Limit > 0 {
		text += " of " + bytesText(c.Limit)
	}
	if n := c.Hits + c.Misses; n > 0 {
		text += fmt.Sprintf(", %d%% of %s found all there", percent(c.Hits, n), countText(uint64(n), "read", "reads"))
	}
	return text
}

func requestsText(a *control.Activity) string {
	text := numberText(a.Requests)
	if a.Read+a.Written > 0 {
		text += fmt.Sprintf("; %s read, %s written by them", bytesText(a.Read), bytesText(a.Written))
	}
	failed, parts := uint64(0), []string{}
	for _, kind := range slices.Sorted(maps.Keys(a.Failures)) {
		failed += a.Failures[kind]
		parts = append(parts, fmt.Sprintf("%s %d", strings.ReplaceAll(kind, "_", " "), a.Failures[kind]))
	}
	if failed > 0 {
		text += fmt.Sprintf("; FAILED %s: %s", numberText(failed), strings.Join(parts, ", "))
	}
	return text
}

// numberText groups digits by three.
func numberText(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func countText(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return numberText(n) + " " + many
}

// spanText is a time in seconds, in at most two units.
func spanText(seconds float64) string {
	if !(seconds < 1000*365*86400) {
		return "ages"
	}
	s := int64(max(seconds, 0))
	units := []struct {
		size int64
		name string
	}{{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}}
	for i, u := range units[:3] {
		if s >= u.size {
			next := units[i+1]
			text := fmt.Sprintf("%d%s", s/u.size, u.name)
			if rest := s % u.size / next.size; rest > 0 {
				text += fmt.Sprintf(" %d%s", rest, next.name)
			}
			return text
		}
	}
	return fmt.Sprintf("%ds", s)
}
