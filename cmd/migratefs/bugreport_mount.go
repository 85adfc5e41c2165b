package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reported is a mount of which a bugreport tells.
type reported struct {
	*seenMount
	options *options // nil: noOptions says why
	given   []string // each option as it was given
	whyNone error
}

// look finds out which names belong to the mount, so that they have tokens before
// anything is told of it.
func (r *bugreport) look(s *seenMount) *reported {
	m := &reported{seenMount: s}
	var made *madeOf
	if m.options, made, m.whyNone = madeOptions(s.mountInfo); made != nil {
		for _, v := range made.Options {
			m.given = append(m.given, splitEscaped(v, ',')...)
		}
	}
	r.tokens.root(s.point)
	if m.options != nil {
		for _, l := range m.options.lowers {
			if l.remote {
				r.tokens.target(l.text)
			} else {
				r.tokens.root(l.text)
			}
		}
		for _, dir := range []string{m.options.upper, m.options.work, m.options.cacheDir} {
			r.tokens.root(dir)
		}
	}
	return m
}

// mount tells of one mount.
func (r *bugreport) mount(ctx context.Context, m *reported) {
	r.section("Mount %s", r.tokens.path(m.point))
	r.line("as the kernel shows it: %s %s", m.dev, r.flags(m.opts))
	r.WriteString("\nOptions\n\n")
	if m.options == nil {
		r.lacks("the options of %s: %s", r.tokens.path(m.point), r.tokens.text(m.whyNone.Error()))
	}
	for _, o := range m.given {
		if o != "" {
			r.line("  %s", r.option(o))
		}
	}
	if m.options != nil {
		r.filesystems(m.options)
	}
	r.WriteString("\nStatus\n\n")
	if m.status == nil {
		r.lacks("how %s is: %s", r.tokens.path(m.point), r.tokens.text(m.why()))
	} else {
		r.json(m.raw)
		r.WriteString("\nMetrics\n\n")
		r.metrics(ctx, m)
		r.WriteString("\nWhat the daemon is doing\n\n")
		r.goroutines(ctx, m)
	}
	r.WriteString("\nLast messages\n\n")
	r.log(ctx, m)
}

// plainValues are the options whose values are numbers or words of ours: those of
// others may be private.
var plainValues = names(`
	mode hosts names view verify fill fill_rate cache_size prefetch timeout entry_timeout attr_timeout negative_timeout
	connections trash_days xattr enospc passthrough metacopy redirect_dir whiteout creds idmap symlinks remote_group index xino
	uid gid squash_to_uid squash_to_gid uidmapping gidmapping max_write max_readahead max_background
	max_idle_threads max_threads subtype verity uuid nfs_export threaded writeback fsync noxattrs xattr_permissions
`)

// secretValues are options that may hold commands, and those passwords.
var secretValues = names(`ssh_option sftp_server ssh_command`)

// sshKeyword is what ssh_config(5) calls an option.
var sshKeyword = regexp.MustCompile(`^[A-Za-z]{2,40}$`)

// option is one option without what may be private in it.
func (r *bugreport) option(opt string) string {
	name, v, has := strings.Cut(opt, "=")
	v = strings.ReplaceAll(v, `\,`, ",")
	t := r.tokens
	switch {
	case optionTable[name] == nil && !mountFlags[name] && !alreadySo[name] && hints[name] == "" && onlyAs[name].value == "":
		return t.text(name) + map[bool]string{true: "=..."}[has]
	case !has || plainValues[name]:
		return opt
	case name == "ssh_option":
		key, _, _ := strings.Cut(v, "=")
		if !sshKeyword.MatchString(key) {
			return name + "=(left out)"
		}
		return name + "=" + key + "=(left out)"
	case secretValues[name] && v != "auto" && v != "migratefs sftp-server":
		return name + "=(left out)"
	case secretValues[name] || t.off:
		return opt
	case name == "lowerdir", name == "lowerdir+":
		var all []string
		for rest := v; rest != ""; {
			var one string
			if one, rest = cutLower(rest); name == "lowerdir+" {
				one, rest = v, ""
			}
			all = append(all, t.private(unescape(one)))
		}
		return name + "=" + strings.Join(all, ":")
	case name == "ssh_as":
		return name + "=" + t.of("user", v)
	}
	return name + "=" + t.private(unescape(v))
}

// plainFlag is a value of a mount's flag that tells no name: a number, or a word that
// filesystems have for themselves.
var plainFlag = regexp.MustCompile(`^(\d+[kmgKMG%]?|on|off|none|all|tcp|udp|rdma|sys|krb5[ip]?|ordered|writeback|journal|positive|strict|relaxed|always|never)$`)

// flagName is what filesystems call their flags.
var flagName = regexp.MustCompile(`^[a-z0-9_]{1,30}$`)

// flags are the options of a mount of any filesystem, as the kernel shows them.
func (r *bugreport) flags(opts string) string {
	var all []string
	for o := range strings.SplitSeq(strings.TrimPrefix(opts, ","), ",") {
		name, v, has := strings.Cut(o, "=")
		switch {
		case r.tokens.off:
			all = append(all, unoctal(o))
		case !flagName.MatchString(name):
			all = append(all, r.tokens.private(unoctal(o)))
		case !has:
			all = append(all, o)
		case plainFlag.MatchString(v):
			all = append(all, name+"="+v)
		default:
			all = append(all, name+"="+r.tokens.private(unoctal(v)))
		}
	}
	return strings.Join(all, ",")
}

// filesystems says what the layers of this host lie on.
func (r *bugreport) filesystems(o *options) {
	type dir struct{ role, path string }
	dirs := []dir{{"upper", o.upper}}
	for _, l := range o.lowers {
		if !l.remote {
			dirs = append(dirs, dir{"lower", l.text})
		}
	}
	dirs = append(dirs, dir{"workdir", o.work}, dir{"cachedir", o.cacheDir})
	r.WriteString("\nFilesystems of the layers\n\n")
	for _, d := range dirs {
		if d.path == "" {
			continue
		}
		if fs := lookAtFilesystem(d.path); fs != nil {
			r.line("  %-8s %s: %s", d.role, r.tokens.path(d.path), r.filesystem(fs))
		} else {
			r.lacks("the filesystem of %s, which does not answer", r.tokens.path(d.path))
		}
	}
}

// lookedAt is what is known of the filesystem that a directory lies on.
type lookedAt struct {
	mount mountInfo
	st    unix.Statfs_t
	err   error
}

// lookAtFilesystem returns nil if it does not answer: one on the network may not do so
// for hours.
func lookAtFilesystem(dir string) *lookedAt {
	answer := make(chan *lookedAt, 1)
	go func() {
		var l lookedAt
		l.mount, _ = mountOf(dir)
		l.err = unix.Statfs(dir, &l.st)
		answer <- &l
	}()
	select {
	case l := <-answer:
		return l
	case <-time.After(5 * time.Second):
		return nil
	}
}

func (r *bugreport) filesystem(l *lookedAt) string {
	if l.err != nil {
		return r.tokens.text(l.err.Error())
	}
	st := &l.st
	text := fmt.Sprintf("type 0x%x", st.Type)
	if l.mount.fsType != "" {
		text = r.tokens.text(l.mount.fsType) + " " + r.flags(l.mount.opts)
	}
	unit := st.Frsize
	return fmt.Sprintf("%s; %s free of %s, %d of %d inodes free, flags 0x%x",
		text, bytesText(int64(st.Bavail)*unit), bytesText(int64(st.Blocks)*unit), st.Ffree, st.Files, st.Flags)
}

// plainFields are the fields of a daemon's answers whose text is of ours, numbers and
// times; textFields are messages. The text of all others may be private.
var (
	plainFields = names(`
		version device mount_namespace mode hosts state role kind log_level
		started last_error_at since when looked operation phase shard scope_kind op result
	`)
	textFields = names(`why last_error error`)
)

// json prints a daemon's answer.
func (r *bugreport) json(raw []byte) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		r.lacks("an answer of the daemon, which is no JSON")
		return
	}
	e := json.NewEncoder(r)
	e.SetEscapeHTML(false)
	e.SetIndent("  ", "  ")
	r.WriteString("  ")
	_ = e.Encode(r.veiled("", v))
}

// veiled is a value of the field called key without what may be private in it.
func (r *bugreport) veiled(key string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, v := range x {
			field := r.tokens.text(k)
			if key == "left_out" {
				field = r.tokens.xattr(k)
			}
			out[field] = r.veiled(k, v)
		}
		return out
	case []any:
		for i := range x {
			x[i] = r.veiled(key, x[i])
		}
		return x
	case string:
		switch {
		case plainFields[key]:
			return x
		case textFields[key]:
			return r.tokens.text(unquoted(x))
		}
		return r.tokens.private(unquoted(x))
	}
	return v
}

func (r *bugreport) metrics(ctx context.Context, m *reported) {
	var b []byte
	if err := m.client.Get(ctx, "/metrics", &b); err != nil {
		r.lacks("the metrics of %s: %s", r.tokens.path(m.point), r.tokens.text(err.Error()))
		return
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			r.WriteString("  " + line)
		}
	}
}

// sourceDir is where a source file of the program lay where it was built.
var sourceDir = regexp.MustCompile(`(?m)(\s)/\S*/([^/\s]+/[^/\s]+\.(?:go|s):\d+)`)

// goroutines prints what the daemon's goroutines do: functions, and no data.
func (r *bugreport) goroutines(ctx context.Context, m *reported) {
	var told struct{ Text string }
	if err := m.client.Get(ctx, "/v1/goroutines", &told); err != nil {
		r.lacks("what the daemon of %s is doing: %s", r.tokens.path(m.point), r.tokens.text(err.Error()))
		return
	}
	for line := range strings.Lines(sourceDir.ReplaceAllString(told.Text, "$1$2")) {
		r.WriteString("  " + line)
	}
}

// messageFields are what messages are about that is text of ours, or an error: the
// text of all others is private as a whole.
var messageFields = names(`
	cause err error op result took how why settings by bytes files left so_far at uid pid errno parked waited
	left_out_before unsaid times count
`)

// log prints the last messages: those that the daemon remembers or, if it is dead or
// of an older version, what the journal has of it or the file of log=.
func (r *bugreport) log(ctx context.Context, m *reported) {
	records, err := r.messages(ctx, m)
	if err != nil {
		r.lacks("the log of %s: %s", r.tokens.path(m.point), r.tokens.text(err.Error()))
	}
	if len(records) == 0 && err == nil {
		r.line("  none")
	}
	for _, c := range records {
		line := fmt.Sprintf("  %s %s %s", c.When.UTC().Format(time.RFC3339), c.Level, r.tokens.message(string(c.Message)))
		for _, a := range c.About {
			v := string(a.Value)
			if messageFields[a.Key] {
				v = r.tokens.text(v)
			} else {
				v = r.tokens.private(v)
			}
			line += " " + r.tokens.text(a.Key) + "=" + v
		}
		r.line("%s", line)
	}
}

// unquoted undoes the quoting of names in answers.
func unquoted(s string) string {
	if u, err := unquoteText(s); err == nil {
		return u
	}
	return s
}

// newest are the last n of all.
func newest[T any](all []T, n int) []T { return slices.Clone(all[max(0, len(all)-n):]) }
