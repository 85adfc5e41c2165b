package control

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"strconv"

	"github.com/migratefs/migratefs/overlay"
)

// Metrics tells how the mount is in Prometheus' format. Layers are labelled by number
// and role; names of files, directories and hosts are in no label.
func (m *Mount) Metrics(ctx context.Context) ([]byte, error) {
	s, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	c := m.FS.Counts()
	e := &exposition{}
	e.family("info", "gauge", "The mount: version, mode, and where it is on the way from its source.")
	e.sample("info", 1, "version", m.Version, "mode", m.Mode, "device", m.Device, "state", s.State)
	e.one("start_time_seconds", "gauge", "When the mount was made, in seconds since 1970.", float64(c.Since.UnixMilli())/1000)
	m.layerMetrics(e, s)
	m.fillMetrics(e, s, &c)
	m.requestMetrics(e, &c)
	e.one("open_handles", "gauge", "Files and directories that are open.", float64(c.Handles))
	e.one("inodes", "gauge", "Inodes that the kernel knows.", float64(c.Nodes))
	e.one("resident_memory_bytes", "gauge", "Memory of the daemon.", float64(s.Activity.Memory))
	e.one("goroutines", "gauge", "Goroutines of the daemon.", float64(runtime.NumGoroutine()))
	e.one("log_messages_left_out_total", "counter", "Log messages that were too many of their kind.", float64(s.Activity.LogDropped))
	return e.Bytes(), nil
}

func (m *Mount) layerMetrics(e *exposition, s *Status) {
	type value struct {
		name, kind, help string
		of               func(l *Layer) (float64, bool)
	}
	local := func(f func(l *Layer) int64) func(*Layer) (float64, bool) {
		return func(l *Layer) (float64, bool) { return float64(f(l)), l.Source == nil && l.Size > 0 }
	}
	source := func(f func(r *Source) int64) func(*Layer) (float64, bool) {
		return func(l *Layer) (float64, bool) {
			if l.Source == nil {
				return 0, false
			}
			return float64(f(l.Source)), true
		}
	}
	for _, v := range []value{
		{"layer_up", "gauge", "Whether the storage of a layer can be reached.", func(l *Layer) (float64, bool) { return number(l.Reachable), true }},
		{"layer_size_bytes", "gauge", "Size of the filesystem of a local layer.", local(func(l *Layer) int64 { return l.Size })},
		{"layer_free_bytes", "gauge", "Room for users on the filesystem of a local layer.", local(func(l *Layer) int64 { return l.Free })},
		{"layer_free_inodes", "gauge", "Inodes that are free on the filesystem of a local layer.", local(func(l *Layer) int64 { return l.Inodes })},
		{"source_requests_total", "counter", "Requests to a source.", source(func(r *Source) int64 { return r.Requests })},
		{"source_round_trips_total", "counter", "Round trips to a source, at most.", source(func(r *Source) int64 { return r.RoundTrips })},
		{"source_read_bytes_total", "counter", "Content of files that a source was asked for.", source(func(r *Source) int64 { return r.Bytes })},
		{"source_wire_bytes_total", "counter", "Bytes that came from a source, before ssh's own overhead.", source(func(r *Source) int64 { return r.Wire })},
		{"source_connections", "gauge", "Connections to a source.", source(func(r *Source) int64 { return int64(r.Connections) })},
		{"source_logins_total", "counter", "Logins at a source: the first of each connection, and those after a loss.", source(func(r *Source) int64 { return r.Connects })},
		{"source_remembered_total", "counter", "Questions about names that were answered from memory.", source(func(r *Source) int64 { return r.Remembered })},
		{"source_waited_total", "counter", "Questions about names that a source was waited for.", source(func(r *Source) int64 { return r.Waited })},
	} {
		first := true
		for i := range s.Layers {
			l := &s.Layers[i]
			x, ok := v.of(l)
			if !ok {
				continue
			}
			if first {
				e.family(v.name, v.kind, v.help)
				first = false
			}
			e.sample(v.name, x, "layer", strconv.Itoa(i), "role", l.Role, "kind", l.Kind)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *Mount) fillMetrics(e *exposition, s *Status, c *overlay.Counts) {
	f := &s.Fill
	e.family("state", "gauge", "Where the mount is on the way from its source: the one that is 1.")
	for _, state := range []string{"lazy", "filling", "complete", "detached"} {
		e.sample("state", number(s.State == state), "state", state)
	}
	e.one("pending_files", "gauge", "Files that were changed here before all of them had come.", float64(f.Files))
	e.one("pending_missing_bytes", "gauge", "Bytes of these that only a source has.", float64(f.Missing))
	e.one("pending_here_bytes", "gauge", "Bytes of these that are here.", float64(f.Here))
	e.one("conflicts", "gauge", "Of these files, those that their source has changed, too.", float64(f.Conflicts))
	e.one("filled_files_total", "counter", "Pending files that became ordinary ones.", float64(f.Finished))
	e.family("fetched_bytes_total", "counter", "Bytes that were fetched from sources.")
	e.sample("fetched_bytes_total", float64(c.Fetched), "for", "demand")
	e.sample("fetched_bytes_total", float64(c.FetchedIdle), "for", "background")
	e.family("fetch_seconds", "histogram", "How long somebody waited for bytes from a source.")
	e.histogram("fetch_seconds", &c.Fetches)
	if s.Cache != nil {
		e.one("cache_used_bytes", "gauge", "What is kept of what was fetched.", float64(s.Cache.Used))
		e.one("cache_hits_total", "counter", "Reads of a source's files of which all was here.", float64(s.Cache.Hits))
		e.one("cache_misses_total", "counter", "Reads of a source's files of which something was not here.", float64(s.Cache.Misses))
	}
}

func (m *Mount) requestMetrics(e *exposition, c *overlay.Counts) {
	e.family("request_seconds", "histogram", "How long the daemon took for requests of the kernel.")
	for _, op := range slices.Sorted(maps.Keys(c.Requests)) {
		h := c.Requests[op]
		e.histogram("request_seconds", &h, "operation", op)
	}
	each(e, "request_errors_total", "counter", "Requests that failed, by errno; a name that is not there is ENOENT.", "errno", c.Errors)
	each(e, "failures_total", "counter", "Requests that failed for what their callers had not caused.", "reason", c.Failures)
	e.one("read_bytes_total", "counter", "Bytes that were read through the daemon.", float64(c.Read))
	e.one("written_bytes_total", "counter", "Bytes that were written through the daemon.", float64(c.Written))
	e.family("copy_up_seconds", "histogram", "How long copy-ups took.")
	e.histogram("copy_up_seconds", &c.CopyUps)
	e.one("copy_up_bytes_total", "counter", "Bytes that copy-ups copied.", float64(c.Copied))
	e.one("copy_up_failures_total", "counter", "Copy-ups that failed.", float64(c.CopyUpsFailed))
	e.one("removals_waiting", "gauge", "Lower copies that are still to be removed, in migrate mode.", float64(c.Removal))
	lost := uint64(0)
	for _, n := range c.LeftOut {
		lost += n
	}
	e.one("xattrs_left_out_total", "counter", "Extended attributes that did not come along with copies.", float64(lost))
}
