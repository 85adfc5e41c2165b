package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kind is a filesystem that is measured. With flat, what lies in the lower for
// others lies in the one directory it has.
type kind struct {
	name string
	flat bool
	// args starts the daemon in the foreground; without it, mount mounts.
	args  func(p *place) []string
	mount func(p *place) error
	// readOnly: it has no upper.
	readOnly bool
	// tells: it says so when it is ready, which is after the mount shows.
	tells bool
	// moves: lower copies go.
	moves bool
	// only are the loads it is for; nil: all.
	only []string
}

// place is where one mount has its layers.
type place struct {
	lower, upper, work, point string
}

func overlayOptions(p *place) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", p.lower, p.upper, p.work)
}

func migrateOptions(p *place) string {
	return fmt.Sprintf("mode=migrate,lowerdir=%s,upperdir=%s", p.lower, p.upper)
}

// findKinds lists the kinds that are asked for and can be had here.
func findKinds(cfg *config) ([]*kind, error) {
	kinds := []*kind{
		{name: "ext4", flat: true, mount: func(p *place) error { return command("mount", "--bind", p.lower, p.point) }},
		{name: "overlayfs", mount: func(p *place) error {
			return command("mount", "-t", "overlay", "overlay", "-o", overlayOptions(p), p.point)
		}},
		{name: "fuse-overlayfs", args: func(p *place) []string {
			return []string{"fuse-overlayfs", "-f", "-o", overlayOptions(p), p.point}
		}},
		{name: "mergerfs", args: func(p *place) []string {
			return []string{"mergerfs", "-f", "-o", "allow_other,category.create=ff,cache.files=partial,dropcacheonclose=true", p.upper + ":" + p.lower, p.point}
		}},
	}
	if cfg.original != "" {
		kinds = append(kinds, &kind{name: "original", args: func(p *place) []string {
			return []string{cfg.original, "-f", "-o", "allow_other,default_permissions,lowerdir=" + p.lower + ",upperdir=" + p.upper, p.point}
		}})
	}
	if wants(cfg.mounts, "go-fuse") {
		loopback, err := buildLoopback()
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, &kind{name: "go-fuse", flat: true, args: func(p *place) []string {
			return []string{loopback, "-q", "-allow-other", "-directmount", p.point, p.lower}
		}})
	}
	kinds = append(kinds, &kind{name: "go-fuse-plain", flat: true, only: []string{"read-lower", "write-upper", "small"}, args: func(p *place) []string {
		return []string{"/proc/self/exe", plainArg, p.point, p.lower}
	}})
	builds := [][2]string{{"ours", cfg.migratefs}}
	if cfg.base != "" {
		builds = append(builds, [2]string{"base", cfg.base})
	}
	for _, b := range builds {
		for _, m := range []struct {
			name    string
			options func(p *place) string
		}{
			{"overlay", func(p *place) string { return "mode=overlay," + overlayOptions(p) }},
			{"migrate", migrateOptions},
			{"migrate-1s", func(p *place) string { return "entry_timeout=1,attr_timeout=1," + migrateOptions(p) }},
			{"volatile", func(p *place) string { return "mode=overlay,volatile," + overlayOptions(p) }},
			{"readonly", func(p *place) string { return "mode=overlay,lowerdir=" + p.lower }},
		} {
			kinds = append(kinds, &kind{name: b[0] + "-" + m.name, readOnly: m.name == "readonly", tells: true, moves: strings.HasPrefix(m.name, "migrate"), only: map[string][]string{"volatile": {"copyup-many"}}[m.name], args: func(p *place) []string {
				return []string{b[1], "-f", "-o", m.options(p), p.point}
			}})
		}
	}
	kinds = slices.DeleteFunc(kinds, func(k *kind) bool {
		if !wants(cfg.mounts, k.name) || k.args == nil {
			return !wants(cfg.mounts, k.name)
		}
		_, err := exec.LookPath(k.args(&place{})[0])
		return err != nil
	})
	for _, name := range cfg.mounts {
		over := slices.ContainsFunc(ways, func(w way) bool { return w.name == name })
		if !over && !slices.ContainsFunc(kinds, func(k *kind) bool { return k.name == name }) {
			return nil, fmt.Errorf("no mount is called %q, or its program is not installed", name)
		}
	}
	return kinds, nil
}

// buildLoopback builds the example of the library that we use.
func buildLoopback() (string, error) {
	bin, err := filepath.Abs("build/bench/loopback")
	if err != nil {
		return "", err
	}
	return bin, command("go", "build", "-o", bin, "github.com/hanwen/go-fuse/v2/example/loopback")
}

// mounted is a kind at work.
type mounted struct {
	*place
	cmd *exec.Cmd // nil: in the kernel
	log *os.File
}

func (k *kind) start(p *place) (*mounted, error) {
	m := &mounted{place: p}
	if k.mount != nil {
		return m, k.mount(p)
	}
	var err error
	if m.log, err = os.Create(p.point + ".log"); err != nil {
		return nil, err
	}
	args := k.args(p)
	m.cmd = exec.Command(args[0], args[1:]...)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	var before unix.Stat_t
	if err := unix.Stat(p.point, &before); err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		var st unix.Stat_t
		if err := unix.Stat(p.point, &st); err == nil && st.Dev != before.Dev && (!k.tells || m.told()) {
			return m, nil
		}
		if time.Now().After(end) {
			_ = m.cmd.Process.Kill()
			_ = m.cmd.Wait()
			out, _ := os.ReadFile(m.log.Name())
			return nil, fmt.Errorf("%s: no mount after 10 s: %s", k.name, out)
		}
	}
}

// told reports whether the daemon has said anything.
func (m *mounted) told() bool {
	st, err := m.log.Stat()
	return err == nil && st.Size() > 0
}

// stop unmounts and waits for the daemon. A file that was just closed may keep a
// FUSE mount busy for a moment.
func (m *mounted) stop() error {
	var err error
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Unmount(m.point, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		_ = unix.Unmount(m.point, unix.MNT_DETACH)
	}
	if m.cmd == nil {
		return err
	}
	defer m.log.Close()
	done := make(chan struct{})
	go func() { _ = m.cmd.Wait(); close(done) }() // some end with an error when unmounted
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = m.cmd.Process.Kill()
		<-done
	}
	return err
}

// cpu is the processor time that the daemon has used so far: its own clock, which
// clock_gettime(2) makes of a pid (CPUCLOCK_SCHED of the process).
func (m *mounted) cpu() time.Duration {
	if m.cmd == nil {
		return 0
	}
	var ts unix.Timespec
	if unix.ClockGettime(int32(^m.cmd.Process.Pid)<<3|2, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
