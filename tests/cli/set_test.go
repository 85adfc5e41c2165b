package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// setStatus is what status --json tells of what is set in the tests here.
type setStatus struct {
	Fill struct {
		Fetching bool
		Files    int   `json:"pending_files"`
		Fetched  int64 `json:"fetched_bytes"`
	}
	Cache struct {
		Used  int64 `json:"used_bytes"`
		Limit int64 `json:"limit_bytes"`
	}
}

func statusOf(t *testing.T, point string) (s setStatus) {
	t.Helper()
	out, _ := tool(t, 0, "status", "--json", point)
	must(t, json.Unmarshal([]byte(out), &s))
	return s
}

// TestSetFill: the filling stands still in the middle of a file, and goes on.
func TestSetFill(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	s.startSSHD(t)
	content := bytes.Repeat([]byte("what a file of 64 MiB in all holds\n"), 2<<20)
	must(t, os.WriteFile(s.at("lower/large"), content, 0o644))
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(s.at("lower/large"), old, old))
	// begin mounts, and changes the head of the file.
	begin := func(upper, point, options string) *testbed.Mounted {
		must(t, os.MkdirAll(s.at(upper), 0o755))
		must(t, os.MkdirAll(s.at(point), 0o755))
		m := testbed.Mount(t, options+"lowerdir=source:"+s.at("lower")+",upperdir="+s.at(upper), s.at(point), testbed.MountConfig{Env: s.env})
		f, err := os.OpenFile(m.Path("large"), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("WHAT"), 0)
		must(t, err)
		must(t, f.Close())
		return m
	}
	m := begin("upper", "mnt", "fill_rate=1M,")
	copy(content, "WHAT")
	testbed.Until(t, "some of it", func() bool { return statusOf(t, m.Point).Fill.Fetched > 0 })
	out, _ := tool(t, 0, "set", m.Point, "fill=off,fill_rate=off")
	contains(t, "set", out, "fill=off\n", "fill_rate=off\n", "cache_size=auto\n")
	// Without a rate as much of it would come, were anything fetched, as comes to a
	// second mount in the time that this needs for all of it.
	was := statusOf(t, m.Point).Fill.Fetched
	other := begin("upper2", "mnt2", "")
	testbed.Until(t, "all of it elsewhere", func() bool { return statusOf(t, other.Point).Fill.Files == 0 })
	const underWay = 16 << 20 // what had been asked for when it was told
	if st := statusOf(t, m.Point); st.Fill.Fetching || st.Fill.Files != 1 || st.Fill.Fetched > was+underWay {
		t.Errorf("with fill=off: %+v, and %d were fetched before", st.Fill, was)
	}
	tool(t, 0, "set", m.Point, "fill=on")
	testbed.Until(t, "all of it", func() bool { return statusOf(t, m.Point).Fill.Files == 0 })
	if got, err := os.ReadFile(s.at("upper/large")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file is another one in the upper: %v", err)
	}
}

// TestSetCacheSize: what is too much goes, what was open stays readable, and the new
// size is kept to.
func TestSetCacheSize(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	s.startSSHD(t)
	const each, many = 1 << 20, 12
	old := time.Now().Add(-time.Hour)
	for i := range many {
		name := s.at(fmt.Sprintf("lower/f%d", i))
		must(t, os.WriteFile(name, bytes.Repeat([]byte{byte('a' + i)}, each), 0o644))
		must(t, os.Chtimes(name, old, old))
	}
	must(t, os.Mkdir(s.at("cache"), 0o700))
	m := testbed.Mount(t, "prefetch=off,lowerdir=source:"+s.at("lower")+",cachedir="+s.at("cache"), s.at("mnt"), testbed.MountConfig{Env: s.env})
	read := func() {
		t.Helper()
		for i := range many {
			if got, err := os.ReadFile(m.Path(fmt.Sprintf("f%d", i))); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte('a' + i)}, each)) {
				t.Fatalf("f%d: %v", i, err)
			}
		}
	}
	read()
	if st := statusOf(t, m.Point); st.Cache.Used < many*each || st.Cache.Limit != 0 {
		t.Fatalf("%+v", st.Cache)
	}
	for _, c := range []struct {
		size, told string
		limit      int64
	}{{"6M", "6291456", 6 << 20}, {"0", "0", -1}} {
		out, _ := tool(t, 0, "set", m.Point, "cache_size="+c.size)
		contains(t, "set", out, "cache_size="+c.told+"\n")
		smaller := func() bool {
			st := statusOf(t, m.Point)
			return st.Cache.Limit == c.limit && st.Cache.Used <= max(c.limit, 0)
		}
		testbed.Until(t, "what is too much to go: "+c.size, smaller)
		read()
		testbed.Until(t, "the size to be kept to: "+c.size, smaller)
	}
	out, _ := tool(t, 0, "set", m.Point, "cache_size=50%")
	if _, rest, _ := bytes.Cut([]byte(out), []byte("cache_size=")); len(rest) < 7 {
		t.Errorf("half of the filesystem is %s", out)
	}
	for arg, want := range map[string]string{
		"cache_size=1K": "too small", "fill=on": "upper", "cachedir=/x": `"cachedir" cannot be changed while it is mounted: unmount`,
		"ro": "NAME=VALUE", "ro=1": "mount -o remount,ro", "quokka=1": `no setting "quokka"`, "fill=perhaps": "on or off",
	} {
		code := 2
		if arg == "fill=on" {
			code = 1
		}
		_, line := tool(t, code, "set", m.Point, arg)
		contains(t, arg, line, want)
	}
	local := filepath.Join(s.dir, "local")
	must(t, os.Mkdir(local, 0o755))
	n := testbed.Mount(t, "lowerdir="+s.at("lower"), local)
	_, line := tool(t, 1, "set", n.Point, "cache_size=20M")
	contains(t, "cache_size of a local mount", line, "another host")
}
