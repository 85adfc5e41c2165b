package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

// golden compares what was printed with testdata/NAME.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *updatePages {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what it was (go test ./cmd/migratefs -update, if that is wanted):\n%s", name, got)
	}
}

var goldenNow = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

// goldenMount is a mount of which there is something to say.
func goldenMount() *seenMount {
	rate, when := int64(10<<20), goldenNow.Add(-90*time.Second)
	return &seenMount{
		mountInfo: mountInfo{point: "/data\nset", dev: "0:42"},
		status: &control.Status{
			Version: "1.2", PID: 4711, Uptime: 2*3600 + 13*60, Mode: "overlay", State: "filling", Device: "0:42",
			Layers: []control.Layer{
				{Role: "upper", Name: "/var/data", Kind: "local", Reachable: true, Size: 4 << 40, Free: 1 << 40},
				{Role: "lower", Name: "user@host:/data", Kind: "remote", Reachable: true,
					Source: &control.Source{Connections: 3, Connects: 4, RoundTrips: 12345, Bytes: 5 << 30}},
				{Role: "lower", Name: "other:/x", Kind: "remote", Why: "source is not reachable: connection refused", Source: &control.Source{}},
			},
			Fill:      control.Fill{Fetching: true, Files: 12, Missing: 700 << 20, Here: 1200 << 20, Finished: 100, Rate: 23 << 20, Conflicts: 1},
			Conflicts: []overlay.ConflictReport{{Path: `dir/a\tb`, Why: "changed on the source", Written: 5}},
			Cache:     &control.Cache{Used: 1 << 30, Limit: 4 << 30, Hits: 98, Misses: 2},
			Activity: control.Activity{
				Requests: 1234567, Read: 5 << 20, Written: 17, CopyUps: 1, Copied: 6, CopyUpsFailed: 2, Removals: 3,
				Failures: map[string]uint64{"offline": 10, "no_descriptors": 2}, Handles: 1, Inodes: 3456, Memory: 100 << 20,
			},
			Losses:    map[string]uint64{"user.b": 2, "user.a\n": 1},
			LastError: "read host: connection lost", LastWhen: &when,
			Settings: control.Settings{FillRate: &rate},
		},
	}
}

func TestShowMount(t *testing.T) {
	var b bytes.Buffer
	s := goldenMount()
	showMount(&b, s, goldenNow)
	b.WriteString("\n" + plainLine(s, goldenNow) + "\n\n")
	s.status.Layers[2].Reachable = true
	s.status.Fill.Waiting, s.status.Fill.Conflicts = true, 0
	s.elsewhere, s.point = true, `/data\nset`
	b.WriteString(plainLine(s, goldenNow) + "\n\n")
	showMount(&b, &seenMount{mountInfo: mountInfo{point: "/dead\n"}, err: errors.New("it\tis odd")}, goldenNow)
	b.WriteString("\n")
	showMount(&b, &seenMount{mountInfo: mountInfo{point: "/local"}, status: &control.Status{
		Version: "1.2", PID: 1, Mode: "migrate", Hosts: "many", Layers: []control.Layer{{Role: "lower", Name: "/old", Reachable: true}},
	}}, goldenNow)
	golden(t, "status.txt", b.Bytes())
}

// Of several mounts there is a line each, which a terminal does not break; what needs
// somebody is said whatever else there is no room for.
func TestStatusTable(t *testing.T) {
	conflicts, away := goldenMount(), goldenMount()
	conflicts.point, conflicts.status.Layers = "/conflicts", conflicts.status.Layers[:2]
	filling := goldenMount()
	filling.elsewhere, filling.point = true, "/srv/containers/storage/a long name/rootfs"
	filling.status.Layers, filling.status.Fill.Conflicts = filling.status.Layers[:2], 0
	all := []*seenMount{
		conflicts, away, filling,
		{mountInfo: mountInfo{point: "/dead\n"}, err: errors.New("it\tis odd")},
		{mountInfo: mountInfo{point: "/home/alice/mnt"}, err: control.ErrForbidden},
		{mountInfo: mountInfo{point: "/scratch"}, status: &control.Status{
			Mode: "migrate", Hosts: "many",
			Layers: []control.Layer{{Role: "upper", Name: "/new", Reachable: true, Free: 5 << 40}, {Role: "lower", Name: "/old", Reachable: true}},
		}},
	}
	var b bytes.Buffer
	for _, width := range []int{0, 100, 80, 40, 20} {
		fmt.Fprintf(&b, "%d columns\n", width)
		var text strings.Builder
		showTable(&text, all, width)
		for line := range strings.Lines(text.String()) {
			if n := runewidth.StringWidth(strings.TrimSuffix(line, "\n")); width > 0 && n > width {
				t.Errorf("%d columns on %d: %q", n, width, line)
			}
			b.WriteString(line)
		}
		b.WriteString("\n")
	}
	golden(t, "status_table.txt", b.Bytes())
}

func TestShowTop(t *testing.T) {
	var b bytes.Buffer
	f := topFlags{lines: 2}
	before := &control.Top{Seconds: 1, Processes: []control.Doing{{PID: 1, Program: "one", Requests: 5, Waited: 1}, {PID: 2, Program: "idle", Requests: 7}}}
	now := &control.Top{
		Seconds: 3, Dropped: 4,
		Processes: []control.Doing{
			{PID: 1, Program: "one", Requests: 8, Waited: 1.25, Longest: 0.5, Read: 4096}, {PID: 2, Program: "idle", Requests: 7},
			{PID: 0, Requests: 3, Failed: 1, Waited: 20, Longest: 12, Fetched: 3 << 20},
		},
		Files: []control.Doing{{Path: `a\nb`, Requests: 3, CopyUps: 1, Copied: 1 << 20}},
	}
	f.show(&b, "/mnt", before, now, 0, 0)
	b.WriteString("\n")
	f.show(&b, "/mnt", now, &control.Top{Seconds: 0.5}, 0, 0)
	golden(t, "top.txt", b.Bytes())
}

func TestParseSettings(t *testing.T) {
	s, n, err := parseSettings([]string{"fill_rate=2M,prefetch=off", "log_level=debug", "trace=on"})
	if err != nil || n != 4 || *s.FillRate != 2<<20 || *s.Prefetch || *s.LogLevel != "debug" || !*s.Trace {
		t.Errorf("%+v, %d, %v", s, n, err)
	}
	if s, _, err = parseSettings([]string{"fill_rate=off"}); err != nil || *s.FillRate != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"fill_rate", "fill_rate=x", "fill_rate=-1", "prefetch=maybe", "log_level=loud", "upperdir=/x", "trace="} {
		var ce *codeError
		if _, _, err := parseSettings([]string{bad}); !errors.As(err, &ce) || ce.code != exitUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestSpanText(t *testing.T) {
	for s, want := range map[float64]string{0: "0s", 59.9: "59s", 60: "1m", 3661: "1h 1m", 86400 * 2: "2d", 90061: "1d 1h", -1: "0s", 1e18: "ages"} {
		if got := spanText(s); got != want {
			t.Errorf("%v: %q, want %q", s, got, want)
		}
	}
}
