// Package control tells who runs a mount how it is, and lets them change what can be
// changed while it is mounted: HTTP over one Unix socket per mount.
//
// The socket is DIR/MAJOR-MINOR.sock, named by the mount's device number, which no two
// mounts of a host share whatever namespace they are in; DIR is /run/migratefs/control
// for root and $XDG_RUNTIME_DIR/migratefs/control for others, closed to everybody else.
// Whoever connects must be root or who runs the daemon (SO_PEERCRED). Nothing is
// written but the socket itself: reports are written by the client that asked.
//
// A socket appears whole, by rename, and only of a daemon that answers; one that
// refuses connections is of a daemon that died, and the next mount removes it. A client
// believes an answer only from a process of the mount's owner, and only if it is about
// the device that is mounted.
//
// # The API, version 1
//
//	GET   /v1/status     Status
//	GET   /v1/conflicts  {"conflicts": [overlay.ConflictReport], "more": bool}, 1,000 at most
//	GET   /v1/missing    Missing: what only the source has of what has to be here, 1,000 names at most
//	GET   /v1/latencies  Latencies
//	GET   /v1/top        Top; the first call begins to look, 15 s without one end it
//	GET   /v1/history    {"every_seconds": N, "samples": [Sample]}, the oldest first
//	GET   /v1/slow       {"slow": [Slow]}, the files whose requests took longest
//	GET   /v1/log        {"lines": [string], "records": [LogRecord]}, the last log messages
//	GET   /v1/goroutines {"text": string}, what each goroutine of the daemon does: functions, no data
//	GET   /v1/settings   Settings
//	PATCH /v1/settings   Settings, with those fields that change; answers all of them
//	POST  /v1/drain      what a drain tells of itself: DrainReports, one on a line, for as long as it runs
//	GET   /metrics       for Prometheus, text format 0.0.4; no label has a file's name
//
// Numbers are bytes, counts or seconds. Names from disk are escaped as in Go and C
// (copyup.Quoted), so that they are valid UTF-8 and stay on their line. Fields are
// added, never changed or removed; a request with a field that is not known is
// refused. An error is {"error": TEXT} with status 400 (the request), 403 (who asks),
// 404, or 500.
//
// Start reading at Mount and Serve.
package control
