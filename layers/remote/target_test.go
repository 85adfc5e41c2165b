package remote

import (
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for s, want := range map[string]Target{
		"host:/path":                 {Host: "host", Path: "/path"},
		"user@host:/":                {User: "user", Host: "host", Path: "/"},
		"a.b-c_d@h-1.example.org:/x": {User: "a.b-c_d", Host: "h-1.example.org", Path: "/x"},
		"user@REALM@host:/x":         {User: "user@REALM", Host: "host", Path: "/x"},
		"[::1]:/x":                   {Host: "::1", Path: "/x"},
		"u@[fe80::1%eth0]:/x":        {User: "u", Host: "fe80::1%eth0", Path: "/x"},
		"ssh://host/x":               {Host: "host", Path: "/x"},
		"ssh://u@host:2222/x/":       {User: "u", Host: "host", Port: 2222, Path: "/x"},
		"ssh://[::1]:22/x":           {Host: "::1", Port: 22, Path: "/x"},
		"host:/a//b/./c/../d/":       {Host: "host", Path: "/a/b/d"},
		"host:/../..":                {Host: "host", Path: "/"},
		"host:/a b\nc:d@e%20":        {Host: "host", Path: "/a b\nc:d@e%20"},
	} {
		got, err := ParseTarget(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", s, got, err, want)
		}
	}
	for s, word := range map[string]string{
		"":                               "no absolute path",
		"host":                           "no absolute path",
		"host:":                          "no absolute path",
		"host:path":                      "no absolute path",
		"host:path/x":                    "absolute",
		"host:~/x":                       "absolute",
		"/local/path":                    "absolute",
		":/x":                            `host "" is empty`,
		"@host:/x":                       `user "" is empty`,
		"user@:/x":                       `host "" is empty`,
		"-oProxyCommand=x:/x":            "dash",
		"-l@host:/x":                     "dash",
		"user@-host:/x":                  "dash",
		"ssh://-x/x":                     "dash",
		"a;b@host:/x":                    "';'",
		"ho$(id)st:/x":                   "'$'",
		"ho`id`st:/x":                    "'`'",
		"h|x:/x":                         "'|'",
		"ho st:/x":                       "' '",
		"ho\nst:/x":                      `'\n'`,
		"ho\x00st:/x":                    `'\x00'`,
		"h\x1b[1mst:/x":                  `'\x1b'`,
		"u%h@host:/x":                    "'%'",
		"hös:/x":                         "not allowed",
		"host:22:/x":                     "port can only",
		"::1:/x":                         `host "" is empty`,
		"fe80::1:/x":                     "port can only",
		"[::1:/x":                        "bracket",
		"[1.2.3.4]:/x":                   "not an IPv6",
		"[::1]x:/x":                      "not a port",
		"[fe80::1%a;b]:/x":               "not an IPv6",
		"ssh://host:/x":                  "port",
		"ssh://host:0/x":                 "port",
		"ssh://host:65536/x":             "port",
		"ssh://host:+22/x":               "port",
		"ssh://host:22":                  "no absolute path",
		"host:/a\x00b":                   "NUL",
		strings.Repeat("h", 256) + ":/x": "longer",
	} {
		got, err := ParseTarget(s)
		switch {
		case err == nil:
			t.Errorf("%q is accepted: %+v", s, got)
		case !strings.Contains(err.Error(), word), strings.Contains(err.Error(), "\n"), !strings.Contains(err.Error(), "write [user@]host:/path"):
			t.Errorf("%q: %v, want one line with %q", s, err, word)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"host:/path", "u@[::1%e]:/x", "ssh://u@h:22/x", "-x:/y", "a@b@c:/..", "[::ffff:1.2.3.4]:/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Errorf("%q: the error is not one printable line: %q", s, err)
			}
			return
		}
		for _, arg := range []string{got.User, got.Host} {
			if strings.HasPrefix(arg, "-") || strings.ContainsAny(arg, " \t\n\x00\x1b'\"`$;&|<>(){}*?!#\\~/") {
				t.Errorf("%q lets %q through to ssh", s, arg)
			}
		}
		if got.Host == "" || !strings.HasPrefix(got.Path, "/") || strings.Contains(got.Path+"/", "/../") {
			t.Errorf("%q: %+v", s, got)
		}
		if again, err := ParseTarget(got.String()); err != nil || again != got {
			t.Errorf("%q is %+v, but its form %q is %+v, %v", s, got, got.String(), again, err)
		}
	})
}
