package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed" // the page, and how it looks
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

var (
	//go:embed report.html
	reportHTML string
	//go:embed report.css
	reportCSS string
)

// What is told comes from disks, and from daemons that may be other users': every text
// goes through onLine here, and html/template escapes it for where it stands. There is
// nothing but text in the page: the policy allows our own style, and nothing else.
var reportTemplate = template.Must(template.New("report").Parse(reportHTML))

// reportNames is how many names each list has at most: a page of a million would not
// open.
const reportNames = 200

// reportPage is what the template shows. All of it is for people: texts with units.
type reportPage struct {
	Style  template.CSS
	Policy string // Content-Security-Policy

	Title, Point, Mode, State, StateClass, When, Up string

	Alerts []string
	Tiles  []reportTile
	Strip  *reportStrip
	Charts []reportChart
	Quiet  string // said where there is nothing to draw
	Moved  []reportPair

	Source                     bool // a layer is on another host
	Risk                       []reportPair
	Conflicts, Missing, Lost   []reportFile
	ConflictsMore, MissingMore string

	Slow             []reportFile
	Latencies        []reportLatency
	Span             string // what the bars of Latencies reach over
	Failures, Errors []reportPair
	Layers           []reportLayer
	About            []reportPair
}

type reportPair struct{ Name, Value string }

type reportTile struct {
	Name, Value, Note, Class string

	Bar     bool
	Percent int64
}

type reportFile struct {
	Path, Why, Op, Who, When string
	Missing, Written, Times  string
	Longest, Waited          string
}

type reportLayer struct{ Role, Where, State, Class string }

// write makes the page.
func (r *reportData) write(out io.Writer) error {
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, r.page()); err != nil {
		return err
	}
	_, err := out.Write(b.Bytes())
	return err
}

func (r *reportData) page() *reportPage {
	st := r.seen.status
	sum := sha256.Sum256([]byte(reportCSS))
	point := r.point()
	p := &reportPage{
		Style:  template.CSS(reportCSS), //nolint:gosec // it is ours
		Policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'",
		Title:  point + " - migratefs", Point: point, Mode: r.mode(), State: onLine(st.State), StateClass: stateClass(st.State),
		When: r.now.Format("Monday, 2 January 2006, 15:04:05 MST"), Up: spanText(st.Uptime),
		Source: st.State != "",
	}
	if why := r.seen.needs(); why != "" {
		p.Alerts = append(p.Alerts, onLine("It "+why+"."))
	}
	if st.LastError != "" && st.LastWhen != nil {
		p.Alerts = append(p.Alerts, onLine(fmt.Sprintf("What went wrong last while files were fetched, %s ago: %s", r.ago(*st.LastWhen), st.LastError)))
	}
	if n := failedCount(&st.Activity); n > 0 {
		p.Alerts = append(p.Alerts, countText(n, "request", "requests")+" failed that callers had not caused: see Errors by kind.")
	}
	p.Tiles, p.Moved = r.tiles(), r.moved()
	r.drawOver(p)
	if p.Source {
		r.risks(p)
	}
	r.slowest(p)
	r.latent(p)
	r.errors(p)
	for i := range st.Layers {
		l := &st.Layers[i]
		row := reportLayer{Role: onLine(l.Role), Where: onLine(string(l.Name)), State: onLine(layerState(l))}
		if !l.Reachable {
			row.Class = "gone"
		}
		p.Layers = append(p.Layers, row)
	}
	p.About = r.about()
	return p
}

// point is where it is mounted.
func (r *reportData) point() string {
	if r.seen.elsewhere {
		return onLine(r.seen.point)
	}
	return onLine(shownName(r.seen.point))
}

func (r *reportData) mode() string {
	st := r.seen.status
	text := map[string]string{
		"migrate":   "mode=migrate: what is modified moves from the lower to the upper",
		"overlay":   "mode=overlay: changes go to the upper, the lowers stay as they are",
		"read-only": "read-only: there is no upper",
	}[st.Mode]
	if text == "" {
		text = "mode=" + st.Mode
	}
	if st.Hosts != "" {
		text += "; hosts=" + st.Hosts
	}
	return onLine(text)
}

// ago is how long ago something was.
func (r *reportData) ago(t time.Time) string { return spanText(r.now.Sub(t).Seconds()) }

// stateClass is how a state is drawn. What is not known is not let into the page.
func stateClass(state string) string {
	if slices.Contains([]string{"lazy", "filling", "complete", "detached"}, state) {
		return state
	}
	return ""
}

func failedCount(a *control.Activity) (n uint64) {
	for _, k := range a.Failures {
		n += k
	}
	return n
}

// tiles are the figures that one wants to see first.
func (r *reportData) tiles() (all []reportTile) {
	st := r.seen.status
	a, f, m := &st.Activity, &st.Fill, migrationOf(st)
	if st.State != "" {
		if m.Looked != nil {
			all = append(all, portion("Here already", m.Here.Bytes, m.Here.Bytes+m.Missing.Bytes, countText(uint64(max(m.Missing.Files, 0)), "file is", "files are")+" missing"))
		} else if f.Files > 0 {
			all = append(all, portion("Here of changed files", f.Here, f.Here+f.Missing, countText(uint64(f.Files), "file is", "files are")+" pending"))
		}
		risk := reportTile{Name: "At risk", Value: "nothing", Note: "of what was changed here needs the source", Class: "good"}
		if m.AtRisk.Files > 0 {
			n := uint64(m.AtRisk.Files)
			risk = reportTile{Name: "At risk", Value: bytesText(m.AtRisk.Bytes), Class: "bad",
				Note: fmt.Sprintf("in %s that %s changed here would be lost if the source died now", countText(n, "file", "files"), wasWere(n))}
		}
		all = append(all, risk)
		if f.Files > f.Conflicts && f.Fetching && f.Rate >= 1 {
			all = append(all, reportTile{Name: "Time left", Value: etaText(st), Note: "at " + bytesText(int64(f.Rate)) + "/s"})
		}
		all = append(all, reportTile{Name: "Fetched", Value: bytesText(a.Fetched), Note: fmt.Sprintf("somebody waited %s for it", lapse(a.FetchWait))})
		if f.Conflicts > 0 {
			all = append(all, reportTile{Name: "In conflict", Value: numberText(uint64(f.Conflicts)), Note: "changed here and on the source", Class: "bad"})
		}
	}
	up := reportTile{Name: "Copied up", Value: bytesText(a.Copied), Note: "in " + countText(a.CopyUps, "file", "files")}
	if a.CopyUpsFailed > 0 {
		up.Note, up.Class = up.Note+fmt.Sprintf("; %d failed", a.CopyUpsFailed), "bad"
	}
	all = append(all, up)
	if d := st.Drained; d != nil {
		all = append(all, reportTile{Name: "Drained", Value: bytesText(d.Bytes), Note: "in " + countText(uint64(max(d.Files, 0)), "file", "files") + ", beside the mount"})
	}
	all = append(all, reportTile{Name: "Requests", Value: numberText(a.Requests),
		Note: fmt.Sprintf("%s read, %s written by them", bytesText(a.Read), bytesText(a.Written))})
	failed := reportTile{Name: "Failed", Value: numberText(failedCount(a)), Note: "that callers had not caused", Class: "good"}
	if failedCount(a) > 0 {
		failed.Class = "bad"
	}
	return append(all, failed)
}

// portion is a tile with a bar.
func portion(name string, part, all int64, note string) reportTile {
	return reportTile{
		Name: name, Value: fmt.Sprintf("%d%%", percent(part, all)), Note: fmt.Sprintf("%s of %s; %s", bytesText(part), bytesText(all), note),
		Bar: true, Percent: min(max(percent(part, all), 0), 100),
	}
}

// moved is what came from where to where.
func (r *reportData) moved() (all []reportPair) {
	st := r.seen.status
	a := &st.Activity
	add := func(name, format string, args ...any) {
		all = append(all, reportPair{name, onLine(fmt.Sprintf(format, args...))})
	}
	add("Copied up", "%s, %s, from a lower to the upper, when they were modified", countText(a.CopyUps, "file", "files"), bytesText(a.Copied))
	if a.CopyUpsFailed > 0 {
		add("Copy-ups that failed", "%d: the lower files are as they were", a.CopyUpsFailed)
	}
	switch d := st.Drained; {
	case d != nil:
		add("Drained", "%s, %s, by drains on this host; the last word of one is %s old", countText(uint64(max(d.Files, 0)), "file", "files"),
			bytesText(d.Bytes), r.ago(d.When))
	case st.Mode == "migrate":
		add("Drained", "nothing, by drains on this host")
	}
	for i := range st.Drains {
		add("Draining now", "%s", drainingText(&st.Drains[i]))
	}
	if st.Mode == "migrate" {
		add("Lower copies to be removed", "%s", numberText(uint64(max(a.Removals, 0))))
	}
	if st.State != "" {
		add("Fetched", "%s; somebody waited %s for it", bytesText(a.Fetched), lapse(a.FetchWait))
		add("In the background", "%s, %s became ordinary files", bytesText(st.Fill.Fetched), countText(uint64(max(st.Fill.Finished, 0)), "file", "files"))
	}
	if c := st.Cache; c != nil {
		add("Kept of what was fetched", "%s", cacheText(c))
	}
	for i := range st.Layers {
		if s := st.Layers[i].Source; s != nil {
			add("Asked of "+onLine(string(st.Layers[i].Name)), "%s of content in %s; %s on the wire; %s",
				bytesText(s.Bytes), countText(uint64(max(s.RoundTrips, 0)), "round trip", "round trips"), bytesText(s.Wire), countText(uint64(max(s.Connects, 0)), "login", "logins"))
		}
	}
	add("Read and written", "%s and %s, through the daemon", bytesText(a.Read), bytesText(a.Written))
	if len(st.Losses) > 0 {
		add("Left out", "%s", lossText(st.Losses))
	}
	return all
}

// risks is what hangs on the source.
func (r *reportData) risks(p *reportPage) {
	st := r.seen.status
	m := migrationOf(st)
	add := func(name, format string, args ...any) {
		p.Risk = append(p.Risk, reportPair{name, onLine(fmt.Sprintf(format, args...))})
	}
	if m.Looked != nil {
		add("Has to be here", "%s, as it was looked through %s ago", m.Scope, r.ago(*m.Looked))
		add("Of that here", "%s", howMuch(m.Here))
		add("Of that missing", "%s", howMuch(m.Missing))
	} else {
		add("Has to be here", "nobody has asked yet: 'migratefs drain' and 'migratefs detach --dry-run' look")
	}
	if m.AtRisk.Files > 0 {
		add("At risk", "%s: they were changed here, and without the source they are lost", howMuch(m.AtRisk))
	} else {
		add("At risk", "nothing that was changed here")
	}
	if f := &st.Fill; f.Files > 0 {
		add("Filling", "%s", fillText(st))
	}
	if m.Left > 0 {
		add("Left on the source", "%s, which cannot be read here", countText(uint64(m.Left), "name", "names"))
	}
	add("In conflict", "%s", countText(uint64(max(st.Fill.Conflicts, 0)), "file", "files"))
	if m.LostReads > 0 {
		add("Reads that failed", "%s for want of the source", numberText(uint64(m.LostReads)))
	}
	for i := range r.conflicts.Conflicts[:min(len(r.conflicts.Conflicts), reportNames)] {
		c := &r.conflicts.Conflicts[i]
		p.Conflicts = append(p.Conflicts, reportFile{Path: fileName(string(c.Path)), Why: onLine(c.Why), Written: bytesText(c.Written), Missing: bytesText(c.Missing)})
	}
	if more := st.Fill.Conflicts - len(p.Conflicts); more > 0 {
		p.ConflictsMore = "And " + numberText(uint64(more)) + " more in conflict."
	}
	for i := range r.missing.Missing[:min(len(r.missing.Missing), reportNames)] {
		x := &r.missing.Missing[i]
		p.Missing = append(p.Missing, reportFile{Path: fileName(string(x.Path)), Missing: bytesText(x.Bytes), Why: onLine(string(x.Why))})
	}
	if more := len(r.missing.Missing) + r.missing.More - len(p.Missing); more > 0 {
		p.MissingMore = "And " + numberText(uint64(more)) + " more: 'migratefs detach --dry-run --json' lists them."
	}
	for _, l := range slices.Backward(m.Lost) {
		p.Lost = append(p.Lost, reportFile{
			Path: fileName(string(l.Path)), Who: processText(l.Pid, string(l.Process)), When: r.ago(l.When) + " ago", Why: onLine(string(l.Why)),
		})
	}
}

func howMuch(a overlay.Amount) string {
	return countText(uint64(max(a.Files, 0)), "file", "files") + ", " + bytesText(a.Bytes)
}

// fileName is a path as it is told, from the root of the mount.
func fileName(path string) string {
	if path == "" {
		return "(a file without a name)"
	}
	return onLine("/" + path)
}

func processText(pid uint32, program string) string {
	if pid == 0 {
		return "not known"
	}
	return onLine(fmt.Sprintf("%d %s", pid, program))
}

func (r *reportData) slowest(p *reportPage) {
	for i := range r.slow {
		f := &r.slow[i]
		name := "/"
		if f.Path != "." {
			name = fileName(string(f.Path))
		}
		p.Slow = append(p.Slow, reportFile{
			Path: name, Op: onLine(f.Op), Longest: lapse(f.Longest), Times: countText(f.Times, "time", "times"), Waited: lapse(f.Waited),
			Who: processText(f.PID, string(f.Program)), When: r.ago(f.When) + " ago",
		})
	}
}

// failureTexts say what the reasons are.
var failureTexts = map[string]string{
	"offline":        "a source could not be reached",
	"denied":         "a source refused the login",
	"replaced":       "another filesystem is where a layer was",
	"stale":          "a file changed underneath while it was open",
	"corrupt":        "what came from a disk or a source contradicts itself",
	"full":           "no room in the upper, or its owner is over quota",
	"no_descriptors": "no more files could be opened",
	"other":          "something else: see the log",
}

func (r *reportData) errors(p *reportPage) {
	most := func(all map[string]uint64, name func(string) string) (pairs []reportPair) {
		keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
			return cmp.Or(cmp.Compare(all[b], all[a]), strings.Compare(a, b))
		})
		for _, k := range keys {
			pairs = append(pairs, reportPair{onLine(name(k)), numberText(all[k])})
		}
		return pairs
	}
	a := &r.seen.status.Activity
	p.Failures = most(a.Failures, func(kind string) string {
		if text := failureTexts[kind]; text != "" {
			return strings.ReplaceAll(kind, "_", " ") + ": " + text
		}
		return kind
	})
	p.Errors = most(a.Errors, func(errno string) string { return errno })
}

// about is what it was mounted with.
func (r *reportData) about() (all []reportPair) {
	st := r.seen.status
	add := func(name, format string, args ...any) {
		all = append(all, reportPair{name, onLine(fmt.Sprintf(format, args...))})
	}
	options := string(st.Options)
	if options == "" {
		options = "none that its daemon tells"
	}
	add("Options", "%s", options)
	if s := &st.Settings; s.FillRate != nil {
		rate := "no limit"
		if *s.FillRate > 0 {
			rate = bytesText(*s.FillRate) + "/s"
		}
		add("Fetched in the background at", "%s", rate)
	}
	if s := &st.Settings; s.Prefetch != nil {
		add("Fetched ahead of readers", "%s", map[bool]string{true: "yes", false: "no"}[*s.Prefetch])
	}
	if s := &st.Settings; s.LogLevel != nil {
		add("Log level", "%s", *s.LogLevel)
	}
	add("Mounted", "%s, device %s", st.Started.Local().Format("2006-01-02 15:04:05 MST"), st.Device)
	add("Daemon", "migratefs %s, process %d of user %d, %s of memory", st.Version, st.PID, st.UID, bytesText(st.Activity.Memory))
	add("Open", "%s; %s known to the kernel", countText(uint64(max(st.Activity.Handles, 0)), "file", "files"), countText(uint64(max(st.Activity.Inodes, 0)), "inode", "inodes"))
	add("This report", "migratefs %s", build.short())
	add("Kernel", "%s", r.kernel)
	return all
}
