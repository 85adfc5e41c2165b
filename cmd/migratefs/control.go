package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/overlay"
)

// socketDir is where the sockets of this user's mounts are; "" where there is no
// place for them.
func socketDir() string {
	if dir := registryDir(); dir != "" {
		return filepath.Join(filepath.Dir(dir), "control")
	}
	return ""
}

// socketDirOf is where the socket of the mount m is, and who must answer on it. As
// root one looks at other users' mounts, too.
func socketDirOf(m mountInfo) (dir string, uid int) {
	uid = m.owner()
	if uid == os.Geteuid() {
		return socketDir(), uid
	}
	if uid == 0 {
		return filepath.Join(runDir, "control"), uid
	}
	return filepath.Join("/run/user", strconv.Itoa(uid), "migratefs", "control"), uid
}

// owner is the user that a FUSE mount belongs to.
func (m *mountInfo) owner() int {
	_, rest, _ := strings.Cut(m.opts, ",user_id=")
	number, _, _ := strings.Cut(rest, ",")
	uid, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return uid
}

// serveControl answers those who ask how the mount is, for as long as it lives. A
// mount without that is one all the same.
func (m *mountCommand) serveControl(st *stack, log *slog.Logger) (end func()) {
	mnt, ok := mountAt(st.point)
	dir := socketDir()
	if !ok || dir == "" {
		log.Debug("no control socket: there is no place for one (XDG_RUNTIME_DIR is not set)")
		return func() {}
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var s *control.Server
		if s, err = control.Serve(dir, m.controlled(st, mnt)); err == nil {
			return s.Close
		}
	}
	log.Warn("no control socket: 'migratefs status' will know nothing of this mount", "cause", err)
	return func() {}
}

func (m *mountCommand) controlled(st *stack, mnt mountInfo) *control.Mount {
	c := &control.Mount{
		FS: st.fs, Version: version, Point: st.point, Device: mnt.dev, Mode: st.o.mode,
		Options: shownOptions(m.options), Layers: st.shown, Log: m.log,
	}
	if dir := restoreDir(st.point); dir != "" {
		c.Memory = func() *control.Memory {
			if p := readPages(dir); p != nil {
				return &control.Memory{Total: p.Total, Missing: p.Missing, Why: p.Error}
			}
			return nil
		}
	}
	switch {
	case st.fs.ReadOnly():
		c.Mode = "read-only"
	case st.o.mode == "migrate" && st.hosts == overlay.Single:
		c.Hosts = "single"
	case st.o.mode == "migrate":
		c.Hosts = "many"
	}
	return c
}

// shownOptions are options as they were given, but for what may hold a password.
func shownOptions(given []string) string {
	var all []string
	r := &bugreport{tokens: &tokens{off: true}}
	for _, v := range given {
		for _, o := range splitEscaped(v, ',') {
			if o != "" {
				all = append(all, r.option(o))
			}
		}
	}
	return strings.Join(all, ",")
}
