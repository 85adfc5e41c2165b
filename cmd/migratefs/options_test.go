package main

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestLowers(t *testing.T) {
	type spec = lowerSpec
	for _, c := range []struct {
		in   string
		want []spec
	}{
		{`/a:/b:c`, []spec{{text: "/a", remote: false}, {text: "/b", remote: false}, {text: "c", remote: false}}},
		{`/a\:b:/c\\d`, []spec{{text: `/a:b`, remote: false}, {text: `/c\d`, remote: false}}},
		{`user@host:/data`, []spec{{text: "user@host:/data", remote: true}}},
		{`host:/data:/local`, []spec{{text: "host:/data", remote: true}, {text: "/local", remote: false}}},
		{`/local:u@h:/x:/y`, []spec{{text: "/local", remote: false}, {text: "u@h:/x", remote: true}, {text: "/y", remote: false}}},
		{`ssh://u@h:2222/x:/y`, []spec{{text: "ssh://u@h:2222/x", remote: true}, {text: "/y", remote: false}}},
		{`ssh://[::1]:22/x`, []spec{{text: "ssh://[::1]:22/x", remote: true}}},
		{`./host:/data`, []spec{{text: "./host", remote: false}, {text: "/data", remote: false}}},
		{`a:b`, []spec{{text: "a", remote: false}, {text: "b", remote: false}}},
		{`a\:b:c`, []spec{{text: "a:b", remote: false}, {text: "c", remote: false}}},
	} {
		var o options
		if err := o.addLowers(c.in); err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if !reflect.DeepEqual(o.lowers, c.want) {
			t.Errorf("%s: %v, want %v", c.in, o.lowers, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	o, err := parseOptions([]string{`lowerdir=/a\,b,upperdir=/up\:x`, "lowerdir+=/c,ro,nosuid,entry_timeout=1.5,x-systemd.automount,_netdev"})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.lowers) != 2 || o.lowers[0].text != "/a,b" || o.lowers[1].text != "/c" {
		t.Errorf("lowers %v", o.lowers)
	}
	if o.upper != "/up:x" || !o.readOnly || *o.entry != 1500*time.Millisecond || !reflect.DeepEqual(o.flags, []string{"nosuid"}) {
		t.Errorf("%+v", o)
	}
}

func TestDefaultMode(t *testing.T) {
	for in, want := range map[string]string{
		"lowerdir=/a,upperdir=/b":                  "migrate",
		"lowerdir=/a,upperdir=/b,mode=overlay":     "overlay",
		"lowerdir=h:/a,upperdir=/b":                "overlay",
		"criu=/i,upperdir=/b":                      "overlay",
		"lowerdir=/a":                              "overlay", // nothing is changed
		"lowerdir=/a,upperdir=/b,userxattr":        "overlay",
		"lowerdir=/a:u@h:/b,upperdir=/c,userxattr": "overlay",
	} {
		o, err := parseOptions([]string{in})
		if err != nil || o.mode != want {
			t.Errorf("%s: mode %q, %v; want %q", in, o.mode, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "lowerdir",
		"lowerdir=":                           "lowerdir",
		"lowerdir=/a,wat":                     "wat",
		"lowerdir=/a,mode=x":                  "migrate or overlay",
		"lowerdir=h:/a,mode=migrate":          "another host",
		"lowerdir=/a,upperdir=/b,upperdir=/c": "twice",
		"lowerdir=/a,uid=x":                   "number",
		"lowerdir=/a,timeout=-1":              "seconds",
		"lowerdir=/a,upperdir=/b,volatile":    "volatile",
		"lowerdir=/a,index=off":               "index=off: only index=on is supported: without it",
		"lowerdir=/a,xino=off":                "xino=off: only xino=on is supported: a FUSE filesystem",
		"lowerdir=/a,xattr=some":              "strict or lenient",
		"lowerdir=/a,enospc=bypass":           "only enospc=serve",
		"lowerdir=/a,upperdir=/b,keep_lower,trash_days=3":   "leave trash_days",
		"lowerdir=/a,upperdir=/b,keep_lower=1":              "no value",
		"lowerdir=/a,upperdir=/b,trash_days=-1":             "from 0",
		"lowerdir=/a,upperdir=/b,mode=overlay,trash_days=3": "mode=migrate",
		"lowerdir=/a,upperdir=/b,mode=overlay,keep_lower":   "mode=migrate",
	} {
		_, err := parseOptions([]string{in})
		var ce *codeError
		if !errors.As(err, &ce) || ce.code != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want a usage error that says %q", in, err, want)
		}
	}
}

func FuzzOptions(f *testing.F) {
	for _, s := range []string{`lowerdir=/a:/b,upperdir=/c`, `lowerdir=ssh://u@h:1/x:\:`, `lowerdir=a\`, "x-=\\,", "lowerdir+=::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOptions([]string{s})
		if err == nil && len(o.lowers) == 0 && o.criu == "" {
			t.Errorf("%q is accepted without a lower", s)
		}
		if err != nil && strings.ContainsRune(oneLine(err.Error()), '\n') {
			t.Errorf("%q: more than one line: %q", s, err)
		}
	})
}

// whiteout=oci is for the lowers of the lowerdir before it, and for overlay mode.
func TestWhiteoutOption(t *testing.T) {
	oci := func(o *options) (s string) {
		for _, l := range o.lowers {
			if l.oci {
				s += l.text + " "
			}
		}
		return s
	}
	for value, want := range map[string]string{
		"upperdir=/u,lowerdir=/a:/b,whiteout=oci":                     "/a /b ",
		"upperdir=/u,lowerdir+=/a,lowerdir+=/b,whiteout=oci":          "/b ",
		"upperdir=/u,lowerdir+=/a,whiteout=oci,lowerdir+=/b":          "/a ",
		"lowerdir=/a:/b,whiteout=oci,lowerdir+=h:/c,whiteout=overlay": "/a /b ",
		"upperdir=/u,lowerdir=/a,whiteout=overlay":                    "",
	} {
		o, err := parseOptions([]string{value})
		if err != nil || oci(o) != want || want != "" && o.mode != "overlay" {
			t.Errorf("%s: lowers %q in mode %s, %v; want %q", value, oci(o), o.mode, err, want)
		}
	}
	for _, value := range []string{
		"whiteout=oci,lowerdir=/a", "lowerdir=/a,upperdir=/u,whiteout=oci,mode=migrate", "lowerdir=/a,whiteout=aufs", "lowerdir=/a,redirect_dir=always",
	} {
		if _, err := parseOptions([]string{value}); err == nil {
			t.Errorf("%s: accepted", value)
		}
	}
	for value, want := range map[string][2]bool{"on": {}, "off": {true}, "follow": {true}, "nofollow": {true, true}} {
		o, err := parseOptions([]string{"lowerdir=/a,redirect_dir=" + value})
		if err != nil || o.noRedirect != want[0] || o.noFollow != want[1] {
			t.Errorf("redirect_dir=%s: %v", value, err)
		}
	}
}

func TestCacheSize(t *testing.T) {
	for v, want := range map[string]struct {
		bytes   int64
		percent float64
	}{
		"0": {-1, 0}, "0%": {-1, 0}, "4M": {4 << 20, 0}, "1.5g": {3 << 29, 0}, "2T": {2 << 40, 0}, "10%": {0, 10}, "0.5%": {0, 0.5},
	} {
		o, err := parseOptions([]string{"lowerdir=h:/a,upperdir=/b,cache_size=" + v})
		if err != nil || o.cacheSize != want.bytes || o.cachePercent != want.percent {
			t.Errorf("%s: %v, %+v", v, err, o)
		}
	}
	for in, want := range map[string]string{
		"lowerdir=h:/a,upperdir=/b,cache_size=":     "bytes",
		"lowerdir=h:/a,upperdir=/b,cache_size=x":    "bytes",
		"lowerdir=h:/a,upperdir=/b,cache_size=-5G":  "bytes",
		"lowerdir=h:/a,upperdir=/b,cache_size=1M":   "at least 4M",
		"lowerdir=h:/a,upperdir=/b,cache_size=101%": "0% to 100%",
		"lowerdir=h:/a,upperdir=/b,cache_size=NaN%": "0% to 100%",
		"lowerdir=h:/a,cache_size=1G":               "cachedir=",
		"lowerdir=/a,upperdir=/b,cachedir=/c":       "leave it out",
		"lowerdir=h:/a,cachedir=/c,cachedir=/d":     "twice",
		"lowerdir=h:/a,cachedir=":                   "empty",
		"lowerdir=/a,upperdir=/b,cache_size=1G":     "leave it out",
	} {
		_, err := parseOptions([]string{in})
		var ce *codeError
		if !errors.As(err, &ce) || ce.code != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want a usage error that says %q", in, err, want)
		}
	}
}

// What a name in a message would do to a terminal is seen, and not done.
func TestMessagesAreText(t *testing.T) {
	const name = "\x1b]0;title\a\xff\u202e"
	if got, want := oneLine("it\nis "+name), `it; is \x1b]0;title\a\xff\u202e`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	st := &stack{o: &options{mode: "migrate", upper: "/u" + name}, point: "/m" + name, upper: "/u" + name}
	if got := st.summary(); strings.ContainsFunc(got, func(r rune) bool { return !strconv.IsGraphic(r) }) || !utf8.ValidString(got) {
		t.Errorf("a mount says %q", got)
	}
}
