package control

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remember"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/overlay"
)

// Mount is what a Server tells about. Its exported fields are immutable.
type Mount struct {
	FS      *overlay.FS
	Version string
	Point   string
	Device  string // MAJOR:MINOR
	Mode    string // migrate, overlay, or read-only
	Hosts   string // of migrate mode
	Options string // as they were given
	Layers  []LayerSpec
	Log     *Log
	Memory  func() *Memory // of a process that was restored; nil: it is not one's view

	drains   drains
	progress progress
	history  history
	space    space
	drained  drained
}

// LayerSpec is a layer as it was mounted.
type LayerSpec struct {
	Upper bool
	Name  string       // as it was given
	Layer layers.Layer // if it is on this host
	Root  FileID       // of a lower on this host

	Remote *remote.Layer   // nil if it is on this host
	Memory *remember.Layer // over Remote

	Twins func() (files int, bytes int64) // of Remote's, which this host has itself; nil: none
}

func (m *Mount) logger() *slog.Logger {
	if m.Log == nil {
		return slog.Default()
	}
	return m.Log.Logger()
}

// hasSource reports whether a layer is on another host.
func (m *Mount) hasSource() bool {
	for i := range m.Layers {
		if m.Layers[i].Remote != nil {
			return true
		}
	}
	return false
}

// Status tells how the mount is.
func (m *Mount) Status(ctx context.Context) (*Status, error) {
	at, age, err := m.progress.get(ctx, m.FS)
	if err != nil {
		return nil, err
	}
	p := &at.Progress
	ns, _ := os.Readlink("/proc/self/ns/mnt")
	s := &Status{
		API: APIVersion, Version: m.Version, PID: os.Getpid(), UID: os.Geteuid(),
		Mountpoint: copyup.Quoted(m.Point), Device: m.Device, Namespace: ns,
		Mode: m.Mode, Hosts: m.Hosts, Options: copyup.Quoted(m.Options), State: string(at.state.Phase),
		Layers: m.layers(at.state.Phase == overlay.Detached),
		Fill: Fill{
			Fetching: p.Fetching, Waiting: p.Waiting, Files: p.Files, Missing: p.Missing, Here: p.Size - p.Missing,
			Finished: p.Finished, Fetched: p.Fetched, Rate: at.rate, Conflicts: p.Conflicts, Age: age.Seconds(),
		},
		Drains: m.drains.read(), Drained: m.drained.read(), Settings: m.settings(),
	}
	if at.state.Phase != overlay.Local {
		r := at.state.Report()
		s.Migration = &r
	}
	if m.Memory != nil {
		s.Memory = m.Memory()
	}
	if s.Memory != nil && at.state.Phase == overlay.Complete {
		s.State = string(overlay.Filling)
	}
	if p.Err != nil {
		s.LastError, s.LastWhen = strconv.QuoteToGraphic(p.Err.Error()), &p.When
		s.LastError = s.LastError[1 : len(s.LastError)-1]
	}
	if c, ok := m.FS.CacheStats(); ok && m.hasSource() {
		s.Cache = &Cache{Used: c.Used, Limit: max(c.Limit, -1), Hits: c.Hits, Misses: c.Misses}
	}
	if p.Conflicts > 0 {
		const some = 10
		c, err := m.conflicts(ctx, some)
		if err != nil {
			return nil, err
		}
		s.Conflicts = c.Conflicts
	}
	m.activity(s)
	return s, nil
}

func (m *Mount) activity(s *Status) {
	c := m.FS.Counts()
	s.Started, s.Uptime, s.Losses = c.Since, time.Since(c.Since).Seconds(), c.LeftOut
	a := &s.Activity
	*a = Activity{
		Errors: c.Errors, Failures: map[string]uint64{}, Read: c.Read, Written: c.Written,
		CopyUps: c.CopyUps.Count(), CopyUpsFailed: c.CopyUpsFailed, Copied: c.Copied,
		Fetched: c.Fetched + c.FetchedIdle, FetchWait: c.Fetches.Sum.Seconds(),
		Removals: c.Removal, Handles: c.Handles, Inodes: c.Nodes, Memory: resident(), LogDropped: m.Log.Dropped(),
	}
	for _, h := range c.Requests {
		a.Requests += h.Count()
	}
	for kind, n := range c.Failures {
		if n > 0 {
			a.Failures[kind] = n
		}
	}
}

// resident is how much memory the process has.
func resident() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if f := strings.Fields(string(b)); err == nil && len(f) > 1 {
		pages, _ := strconv.ParseInt(f[1], 10, 64)
		return pages * int64(os.Getpagesize())
	}
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	return int64(ms.Sys)
}

func (m *Mount) layers(detached bool) (all []Layer) {
	for i := range m.Layers {
		spec := &m.Layers[i]
		l := Layer{Role: "lower", Name: copyup.Quoted(spec.Name), Kind: "local", Reachable: true}
		if spec.Upper {
			l.Role = "upper"
		}
		if spec.Remote == nil {
			if st, ok := m.space.of(spec.Layer); !ok {
				l.Reachable, l.Stuck, l.Why = false, true, "its filesystem does not answer"
			} else if st != nil {
				unit := uint64(st.Frsize)
				l.Size, l.Free = int64(st.Blocks*unit), int64(st.Bavail*unit)
				l.Used, l.Inodes = int64((st.Blocks-st.Bfree)*unit), int64(st.Ffree)
			}
			all = append(all, l)
			continue
		}
		l.Kind, l.Source = "remote", sourceOf(spec)
		if spec.Twins != nil && !detached {
			l.TwinFiles, l.TwinBytes = spec.Twins()
		}
		if detached {
			l.Detached = true
		} else if err := spec.Remote.Offline(); err != nil {
			l.Reachable, l.Why = false, oneLine(err.Error())
		}
		all = append(all, l)
	}
	return all
}

func sourceOf(spec *LayerSpec) *Source {
	r := spec.Remote.Stats()
	s := &Source{
		Requests: r.Requests, RoundTrips: r.Bursts, Bytes: r.BytesRead, Wire: r.WireIn,
		Connections: r.Connections, Connects: r.Connects,
	}
	if spec.Memory != nil {
		k := spec.Memory.Stats()
		s.Remembered, s.Waited, s.Memory = k.Known, k.Waits, k.Bytes
	}
	return s
}

func oneLine(s string) string {
	q := strconv.QuoteToGraphic(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// conflictsMost is how many conflicts are listed.
const conflictsMost = 1000

func (m *Mount) conflicts(ctx context.Context, most int) (*Conflicts, error) {
	all, err := m.FS.Conflicts(ctx)
	if err != nil {
		return nil, err
	}
	c := &Conflicts{Conflicts: []overlay.ConflictReport{}, More: len(all) > most}
	for i := range all[:min(len(all), most)] {
		c.Conflicts = append(c.Conflicts, all[i].Report())
	}
	return c, nil
}

// missingMost is how many names that are missing are listed.
const missingMost = 1000

func (m *Mount) missing(ctx context.Context) (*Missing, error) {
	all, err := m.FS.MissingNow(ctx)
	if err != nil {
		return nil, err
	}
	told := &Missing{Missing: []overlay.MissingReport{}, More: max(len(all)-missingMost, 0)}
	for i := range all[:min(len(all), missingMost)] {
		told.Missing = append(told.Missing, all[i].Report())
	}
	return told, nil
}

func (m *Mount) latencies() *Latencies {
	c := m.FS.Counts()
	one := func(h *overlay.Histogram) Latency {
		return Latency{Counts: append([]uint64{}, h.Buckets[:]...), Seconds: h.Sum.Seconds()}
	}
	l := &Latencies{Requests: map[string]Latency{}, CopyUps: one(&c.CopyUps), Fetches: one(&c.Fetches)}
	for i := range overlay.HistogramBuckets - 1 {
		l.Bounds = append(l.Bounds, overlay.BucketBound(i).Seconds())
	}
	for op, h := range c.Requests {
		l.Requests[op] = one(&h)
	}
	return l
}

func (m *Mount) top() *Top {
	seen := m.FS.Look()
	const most = 200
	t := &Top{Seconds: time.Since(seen.Since).Seconds(), Dropped: seen.Dropped}
	rows := func(all []overlay.Doing) []Doing {
		out := []Doing{}
		for i := range all[:min(len(all), most)] {
			d := &all[i]
			out = append(out, Doing{
				PID: d.PID, Program: copyup.Quoted(d.Program), Path: copyup.Quoted(d.Path),
				Requests: d.Requests, Failed: d.Failed, Waited: d.Waited.Seconds(), Longest: d.Longest.Seconds(),
				Read: d.Read, Written: d.Written, Fetched: d.Fetched, CopyUps: d.CopyUps, Copied: d.Copied,
			})
		}
		return out
	}
	t.Processes, t.Files = rows(seen.Processes), rows(seen.Files)
	return t
}

func (m *Mount) slow() []Slow {
	all := []Slow{}
	for _, f := range m.FS.Counts().Slow {
		all = append(all, Slow{
			Path: copyup.Quoted(f.Path), Op: f.Op, Longest: f.Took.Seconds(), When: f.When, PID: f.PID,
			Program: copyup.Quoted(f.Program()), Times: f.Times, Waited: f.Waited.Seconds(),
		})
	}
	return all
}

// space asks filesystems how full they are, and waits for none: one on the network
// may not answer for hours.
type space struct {
	mu  sync.Mutex
	all map[layers.Layer]*asking
}

type asking struct {
	done  chan struct{} // closed when st is there
	st    *layers.Statfs
	began time.Time
}

// spacePatience is how long an answer is waited for, and spaceFresh how long it is good.
const (
	spacePatience = time.Second
	spaceFresh    = 2 * time.Second
)

// of returns how full the filesystem of a layer is, nil if that cannot be told; ok is
// false if it does not answer.
func (s *space) of(l layers.Layer) (st *layers.Statfs, ok bool) {
	if l == nil {
		return nil, true
	}
	s.mu.Lock()
	if s.all == nil {
		s.all = make(map[layers.Layer]*asking)
	}
	a := s.all[l]
	if a == nil || a.answered() && time.Since(a.began) > spaceFresh {
		a = &asking{done: make(chan struct{}), began: time.Now()}
		s.all[l] = a
		go func() {
			defer close(a.done)
			if st, err := l.Statfs(context.Background()); err == nil {
				a.st = &st
			}
		}()
	}
	s.mu.Unlock()
	select {
	case <-a.done:
		return a.st, true
	case <-time.After(spacePatience):
		return nil, false
	}
}

func (a *asking) answered() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}
