package main

import (
	"maps"
	"testing"
)

// A trace as strace -f -y -x writes it, with a call in two lines.
const traced = `7 read(8</dev/fuse>, "\x28\x00\x00\x00\x01\x00\x00\x00"..., 1052752) = 40
8 read(8</dev/fuse>,  <unfinished ...>
7 statx(9</srv/up>, "f", AT_STATX_SYNC_AS_STAT, STATX_ALL, {...}) = 0
7 writev(8</dev/fuse>, [{iov_base="\x90\x00\x00\x00\x00\x00\x00\x00"..., iov_len=16}], 1) = 144
8 <... read resumed>"\x44\x00\x00\x00\x2c\x00\x00\x00"..., 1052752) = 68
8 futex(0xc000, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>
7 read(8</dev/fuse>, 0xc000, 1052752) = -1 EAGAIN (Resource temporarily unavailable)
7 read(10</proc/1/status>, "Name:\tin"..., 512) = 300
8 +++ exited with 0 +++
`

func TestParseTrace(t *testing.T) {
	c := parseTrace([]byte(traced))
	if want := map[string]int{"lookup": 1, "readdirplus": 1}; !maps.Equal(c.requests, want) {
		t.Errorf("requests: %v, want %v", c.requests, want)
	}
	if want := map[string]int{"statx": 1, "read": 1}; !maps.Equal(c.calls, want) {
		t.Errorf("calls: %v, want %v", c.calls, want)
	}
}

// A ratio is taken run by run: a run in which everything was slow changes nothing.
func TestRatioIsPaired(t *testing.T) {
	a, b := &kind{name: "a"}, &kind{name: "b"}
	r := row{figure: map[*kind][]figure{
		a: {{wall: 10}, {wall: 1000}, {wall: 30}},
		b: {{wall: 20}, {wall: 2000}, {wall: 60}},
	}}
	if v, ok := r.ratio(a, b); !ok || v != 0.5 {
		t.Errorf("ratio %v, %v; want 0.5", v, ok)
	}
}
