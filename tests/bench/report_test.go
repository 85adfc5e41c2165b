package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// The page has the ratio of each pair, bold where it misses its target; the chart
// is XML and shows it too. A mount that a load skips leaves its cells empty.
func TestPage(t *testing.T) {
	daemon := func(*place) []string { return nil }
	bare := &kind{name: "ext4"}
	peer, ours := &kind{name: "fuse-overlayfs", args: daemon}, &kind{name: "ours-overlay", args: daemon}
	l := &load{name: "untar", steps: []step{{name: "tar -x <all>", ops: 10}}}
	res := &results{
		figures: []map[*kind][]figure{{peer: {{wall: 40 * time.Millisecond, cpu: time.Millisecond}}, ours: {{wall: 50 * time.Millisecond}}}},
		counts:  []map[*kind]count{{ours: {requests: map[string]int{"lookup": 30}, calls: map[string]int{"statx": 5}}}},
	}
	r := &report{cfg: &config{counts: true, runs: 1}, kinds: []*kind{bare, peer, ours}}
	r.add(l, res)
	r.memory = map[*kind]memoryUse{ours: {before: 8 << 20, after: 18 << 20, dropped: 9 << 20, later: 8 << 20, files: 10}}
	var page bytes.Buffer
	r.page(&page)
	for _, want := range []string{
		"| untar: tar -x <all> | fuse-overlayfs | 0.80 | **1.25** |  |  |  |",
		"| untar: tar -x <all> |  | 40 | 50 |",
		"| untar: tar -x <all> | 100.0 | 0.0 |",
		"|  | 3.00 / 0.50 |",
		"| ours-overlay | 8 | 18 | 1048576 | 9 | 8 |",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, page.String())
		}
	}
	chart := r.chart()
	if !strings.Contains(chart, ">1.25<") {
		t.Errorf("the chart lacks the ratio:\n%s", chart)
	}
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart: %v", err)
		}
	}
}
