package control

import (
	"time"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/overlay"
)

// APIVersion is the version of the API that Status tells.
const APIVersion = 1

// Status is how a mount is.
type Status struct {
	API        int           `json:"api"`
	Version    string        `json:"version"` // of the program
	PID        int           `json:"pid"`
	UID        int           `json:"uid"` // who runs it
	Started    time.Time     `json:"started"`
	Uptime     float64       `json:"uptime_seconds"`
	Mountpoint copyup.Quoted `json:"mountpoint"` // in the namespace of the daemon
	Device     string        `json:"device"`     // MAJOR:MINOR, as in /proc/self/mountinfo
	Namespace  string        `json:"mount_namespace"`
	Mode       string        `json:"mode"`              // migrate, overlay, or read-only
	Hosts      string        `json:"hosts,omitempty"`   // of migrate mode: many or single
	Options    copyup.Quoted `json:"options,omitempty"` // as they were given
	State      string        `json:"state,omitempty"`   // with a source: lazy, filling, complete, detached

	Layers []Layer `json:"layers"` // the highest first

	Migration *overlay.StateReport     `json:"migration,omitempty"` // with a source
	Fill      Fill                     `json:"fill"`
	Drains    []Drain                  `json:"drains,omitempty"`         // on this host, of a lower of this mount
	Memory    *Memory                  `json:"process_memory,omitempty"` // of a process that restore --lazy-pages restored, while some of it is missing
	Cache     *Cache                   `json:"cache,omitempty"`
	Activity  Activity                 `json:"activity"`
	Drained   *Drained                 `json:"drained,omitempty"`   // by drain commands beside the mount
	Conflicts []overlay.ConflictReport `json:"conflicts,omitempty"` // some of them
	Losses    map[string]uint64        `json:"left_out,omitempty"`  // extended attributes that did not come up

	LastError string     `json:"last_error,omitempty"` // of the filling
	LastWhen  *time.Time `json:"last_error_at,omitempty"`

	Settings Settings `json:"settings"`
}

// Layer is one layer.
type Layer struct {
	Role      string        `json:"role"` // upper or lower
	Name      copyup.Quoted `json:"name"` // as it was given
	Kind      string        `json:"kind"` // local or remote
	Reachable bool          `json:"reachable"`
	Why       string        `json:"why,omitempty"`           // it is not
	Size      int64         `json:"size_bytes,omitempty"`    // of the filesystem, if it is local
	Used      int64         `json:"used_bytes,omitempty"`    // of that
	Free      int64         `json:"free_bytes,omitempty"`    // of that, for users
	Inodes    int64         `json:"free_inodes,omitempty"`   // of that
	Source    *Source       `json:"source,omitempty"`        // if it is remote
	TwinFiles int           `json:"twin_files,omitempty"`    // of a checkpoint's, of which this host has the same: they are not fetched
	TwinBytes int64         `json:"twin_bytes,omitempty"`    // of those
	Detached  bool          `json:"detached,omitempty"`      // it is not asked any more
	Stuck     bool          `json:"not_answering,omitempty"` // its filesystem does not say how full it is
}

// Source is what a remote layer has done since the mount.
type Source struct {
	Requests    int64 `json:"requests"`
	RoundTrips  int64 `json:"round_trips"` // at most so many
	Bytes       int64 `json:"bytes"`       // of file content
	Wire        int64 `json:"wire_bytes"`  // received, before ssh's own overhead
	Connections int   `json:"connections"` // now
	Connects    int64 `json:"logins"`
	Remembered  int64 `json:"remembered"` // questions that were answered from memory
	Waited      int64 `json:"waited"`     // questions that the source was waited for
	Memory      int64 `json:"memory_bytes"`
}

// Fill is how far pending files are: those that were changed here before all of them
// had come.
type Fill struct {
	Fetching  bool    `json:"fetching"` // in the background
	Waiting   bool    `json:"waiting"`  // for a source that is away
	Files     int     `json:"pending_files"`
	Missing   int64   `json:"missing_bytes"` // what only the source has
	Here      int64   `json:"here_bytes"`    // of the same files
	Finished  int64   `json:"finished_files"`
	Fetched   int64   `json:"fetched_bytes"`
	Rate      float64 `json:"bytes_per_second"` // lately
	Conflicts int     `json:"conflicts"`
	Age       float64 `json:"age_seconds"` // of these numbers
}

// Memory is how far the memory of a process is that goes on before all of it is here.
type Memory struct {
	Total   int64  `json:"bytes"` // that may come later
	Missing int64  `json:"missing_bytes"`
	Why     string `json:"error,omitempty"` // nothing comes at present
}

// Cache is what is kept of what was fetched and is not ours.
type Cache struct {
	Used   int64 `json:"used_bytes"`
	Limit  int64 `json:"limit_bytes"` // 0: what leaves the filesystem a reserve; -1: nothing is kept
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
}

// Activity is what the mount has done since it was made, and holds now.
type Activity struct {
	Requests      uint64            `json:"requests"`
	Errors        map[string]uint64 `json:"errors,omitempty"`   // by errno
	Failures      map[string]uint64 `json:"failures,omitempty"` // by reason; those that callers had not caused
	Read          int64             `json:"read_bytes"`         // but for passthrough
	Written       int64             `json:"written_bytes"`
	CopyUps       uint64            `json:"copy_ups"`
	CopyUpsFailed int64             `json:"copy_ups_failed"`
	Copied        int64             `json:"copied_bytes"`
	Fetched       int64             `json:"fetched_bytes"`
	FetchWait     float64           `json:"fetch_wait_seconds"`
	Removals      int               `json:"removals_waiting"` // of lower copies, in migrate mode
	Handles       int               `json:"open_handles"`
	Inodes        int               `json:"inodes"`
	Memory        int64             `json:"memory_bytes"` // resident
	LogDropped    uint64            `json:"log_messages_left_out"`
}

// Settings are what can be changed while it is mounted. Of a change, what is nil stays.
type Settings struct {
	Fill     *bool   `json:"fill,omitempty"`
	FillRate *int64  `json:"fill_rate,omitempty"` // bytes a second; 0: no limit
	Prefetch *bool   `json:"prefetch,omitempty"`
	LogLevel *string `json:"log_level,omitempty"` // error, warn, info, debug

	CacheSize    *int64   `json:"cache_size,omitempty"`    // bytes, as Cache.Limit has them
	CachePercent *float64 `json:"cache_percent,omitempty"` // of the filesystem; told as cache_size

	Trace *bool `json:"trace,omitempty"` // every request is logged
}

// Top is who does what.
type Top struct {
	Seconds   float64 `json:"seconds"` // since it is looked
	Processes []Doing `json:"processes"`
	Files     []Doing `json:"files"`
	Dropped   uint64  `json:"dropped"`
}

// Doing is what one process did, or was done with one file, since it is looked.
type Doing struct {
	PID      uint32        `json:"pid,omitempty"`
	Program  copyup.Quoted `json:"program,omitempty"`
	Path     copyup.Quoted `json:"path,omitempty"`
	Requests uint64        `json:"requests"`
	Failed   uint64        `json:"failed"`
	Waited   float64       `json:"waited_seconds"`
	Longest  float64       `json:"longest_seconds"`
	Read     int64         `json:"read_bytes"`
	Written  int64         `json:"written_bytes"`
	Fetched  int64         `json:"fetched_bytes"`
	CopyUps  uint64        `json:"copy_ups"`
	Copied   int64         `json:"copied_bytes"`
}

// Slow is a file with requests that took long.
type Slow struct {
	Path    copyup.Quoted `json:"path"`
	Op      string        `json:"operation"`
	Longest float64       `json:"longest_seconds"`
	When    time.Time     `json:"when"`
	PID     uint32        `json:"pid"`
	Program copyup.Quoted `json:"program"`
	Times   uint64        `json:"times"`
	Waited  float64       `json:"waited_seconds"`
}

// Drained is what drains of this host have moved from a lower of the mount since it was
// made, as they told.
type Drained struct {
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
	When  time.Time `json:"when"` // of the last word
}

// Latencies are how long things took since the mount. Bounds are the longest times that
// are counted in each bucket; the last bucket, which is for what took longer, has none.
type Latencies struct {
	Bounds   []float64          `json:"bounds_seconds"`
	Requests map[string]Latency `json:"requests"` // of the kernel, by kind
	CopyUps  Latency            `json:"copy_ups"`
	Fetches  Latency            `json:"fetches"` // from sources, that somebody waited for
}

// Latency is how often something took how long.
type Latency struct {
	Counts  []uint64 `json:"counts"`  // by bucket, each without those before it
	Seconds float64  `json:"seconds"` // together
}

// Missing is a list of all that is known to be missing, or of the first.
type Missing struct {
	Missing []overlay.MissingReport `json:"missing"`
	More    int                     `json:"more"` // that are not listed
}

// Sample is what there was at one moment.
type Sample struct {
	When     time.Time `json:"when"`
	State    string    `json:"state"`
	Here     int64     `json:"here_bytes"`
	Missing  int64     `json:"missing_bytes"`
	Files    int       `json:"pending_files"`
	Fetched  int64     `json:"fetched_bytes"` // since the mount, in the foreground and the background
	CopyUps  uint64    `json:"copy_ups"`
	Copied   int64     `json:"copied_bytes"`
	Drained  int64     `json:"drained_bytes"`
	Requests uint64    `json:"requests"`
	Failures uint64    `json:"failures"`
	Away     int       `json:"sources_away"`
}

// History is how it was, over the life of a mount.
type History struct {
	Every   float64  `json:"every_seconds"`
	Samples []Sample `json:"samples"`
}

// Conflicts is a list of all conflicts, or of the first.
type Conflicts struct {
	Conflicts []overlay.ConflictReport `json:"conflicts"`
	More      bool                     `json:"more"`
}
