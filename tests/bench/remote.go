package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Over SSH, what counts is how often somebody waits for the link and what goes over
// it. Every contestant reaches the same sshd through the same proxy, which can make a
// round trip take as long as one between cities; the source's files are warm, and the
// contestant begins with nothing.

// tooSlow is what is measured once only: a mount that asks for each file by itself
// takes an hour over a long link.
const tooSlow = 20 * time.Second

// rtts are the round trips, beside what this machine itself takes.
var rtts = []time.Duration{0, 20 * time.Millisecond}

// trip is a directory on the source, seen from where it is needed.
type trip struct {
	source string // HOST:
	ssh    string // the program
	port   int
	key    string
	dir    string // on the source
	at     string // here: mnt, upper, work, low, copy
}

func (t *trip) in(name string) string { return filepath.Join(t.at, name) }

// way is how the source's files are reached: by a mount, or by a copy of them.
type way struct {
	name     string
	mounts   []func(cfg *config, t *trip) (point string, args []string)
	copies   func(cfg *config, t *trip, what, to string) []string
	oneFile  bool // of a tree it makes hours
	writable bool // the mount has an upper
}

func sshfs(more ...string) func(*config, *trip) (string, []string) {
	return func(_ *config, t *trip) (string, []string) {
		args := append([]string{"sshfs", "-f", "-o", "ssh_command=" + t.ssh}, more...)
		return t.in("mnt"), append(args, t.source+t.dir, t.in("mnt"))
	}
}

// ours does not fill what was written to: that would go on beside what is measured.
func ours(cfg *config, t *trip) (string, []string) {
	return t.in("mnt"), []string{cfg.migratefs, "-f", "-o", fmt.Sprintf("mode=overlay,fill=off,ssh_command=%s,lowerdir=%s,upperdir=%s,workdir=%s",
		t.ssh, t.source+t.dir, t.in("upper"), t.in("work")), t.in("mnt")}
}

var ways = []way{
	{name: "ours", writable: true, mounts: []func(*config, *trip) (string, []string){ours}},
	{name: "scp", oneFile: true, copies: func(_ *config, t *trip, what, to string) []string {
		return []string{"scp", "-q", "-r", "-S", t.ssh, t.source + t.dir + "/" + what, to}
	}},
	{name: "rsync", copies: func(_ *config, t *trip, what, to string) []string {
		return []string{"rsync", "-a", "-e", t.ssh, t.source + t.dir + "/" + what, to}
	}},
	{name: "sshfs", mounts: []func(*config, *trip) (string, []string){sshfs()}},
	{name: "sshfs max_conns=4", mounts: []func(*config, *trip) (string, []string){sshfs("-o", "max_conns=4")}},
	{name: "rclone mount", mounts: []func(*config, *trip) (string, []string){func(_ *config, t *trip) (string, []string) {
		return t.in("mnt"), []string{"rclone", "mount", "--vfs-cache-mode", "full", "--cache-dir", t.in("work"), "--config", "/dev/null",
			fmt.Sprintf(":sftp,host=127.0.0.1,port=%d,user=root,key_file=%s,shell_type=none,md5sum_command=none,sha1sum_command=none:%s", t.port, t.key, t.dir), t.in("mnt")}
	}}},
	{name: "sshfs + fuse-overlayfs", writable: true, mounts: []func(*config, *trip) (string, []string){
		func(cfg *config, t *trip) (string, []string) {
			_, args := sshfs()(cfg, t)
			args[len(args)-1] = t.in("low")
			return t.in("low"), args
		},
		func(_ *config, t *trip) (string, []string) {
			return t.in("mnt"), []string{"fuse-overlayfs", "-f", "-o", overlayOptions(&place{lower: t.in("low"), upper: t.in("upper"), work: t.in("work")}), t.in("mnt")}
		},
	}},
}

// errand is what is done with the source's files.
type errand struct {
	name   string
	on     func(point string) error // in a mount
	copies string                   // what a copier copies before on does the rest in the copy; "": not for copiers
	writes bool
	again  bool // in the mount of the errand before
}

func errands(cfg *config) []errand {
	grep := func(dir string) error {
		err := exec.Command("grep", "-r", "no such words", dir).Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 1 {
			return nil
		}
		return fmt.Errorf("grep: %w", err)
	}
	files, dirs, bytes := remoteSizes(cfg)
	return []errand{
		{name: fmt.Sprintf("read %d MiB", bytes>>20), copies: "big", on: func(p string) error { return readAll(p + "/big") }},
		{name: fmt.Sprintf("grep -r, %d small files", files), copies: "few", on: func(p string) error { return grep(p + "/few") }},
		{name: fmt.Sprintf("find -ls, %d directories", dirs), on: func(p string) error { return walk(p + "/many") }},
		{name: "the same again", again: true, on: func(p string) error { return walk(p + "/many") }},
		{name: "ls -l of 1000 files", on: func(p string) error { return command("ls", "-l", p+"/ls/d0000") }},
		{name: "first byte written to 4 KiB", writes: true, on: func(p string) error { return firstByte(p + "/small") }},
		{name: fmt.Sprintf("first byte written to %d MiB", bytes>>20), writes: true, on: func(p string) error { return firstByte(p + "/big") }},
	}
}

func remoteSizes(cfg *config) (files, dirs, bytes int) {
	if cfg.quick {
		return 500, 50, 50 << 20
	}
	return cfg.files, 1000, 1 << 30
}

// told is one errand over one link.
type told struct {
	errand string
	rtt    time.Duration
	took   map[string][]float64 // seconds, by way
	down   map[string]int64     // bytes, of the last run
}

// stand is the testing.TB of a program that is no test: what fails ends it.
type stand struct {
	testing.TB
	undo []func()
}

func (s *stand) Helper()                   {}
func (s *stand) Cleanup(f func())          { s.undo = append(s.undo, f) }
func (s *stand) Logf(string, ...any)       {}
func (s *stand) Fatal(v ...any)            { panic(failure(fmt.Sprint(v...))) }
func (s *stand) Fatalf(f string, v ...any) { panic(failure(fmt.Sprintf(f, v...))) }
func (s *stand) Errorf(f string, v ...any) { fmt.Fprintf(os.Stderr, f+"\n", v...) }

func (s *stand) end() {
	for _, f := range slices.Backward(s.undo) {
		f()
	}
}

type failure string

// standing calls f, and then undoes what was made on the stand, also when that has failed.
func standing(f func(tb *stand) error) (err error) {
	tb := &stand{}
	defer tb.end()
	defer func() {
		if f := recover(); f != nil {
			why, ok := f.(failure)
			if !ok {
				panic(f)
			}
			err = errors.New(string(why))
		}
	}()
	return f(tb)
}

// remote runs every errand in every way over every link, run by run.
func (b *bed) remote() (all []told, err error) {
	err = standing(func(tb *stand) error {
		all, err = b.remoteOn(tb)
		return err
	})
	return all, err
}

func (b *bed) remoteOn(tb *stand) (all []told, err error) {
	dir := filepath.Join(b.dir, "source")
	if err := fillSource(b.cfg, dir); err != nil {
		return nil, err
	}
	link := testbed.NewProxy(tb, "")
	sshd := testbed.StartSSHD(tb, testbed.SSHDConfig{Through: link, SFTP: "internal-sftp", Lines: []string{"MaxStartups 100:30:200"}})
	t := trip{source: sshd.Target(""), ssh: sshd.BinDir() + "/ssh", port: link.Port(), key: filepath.Join(filepath.Dir(sshd.BinDir()), "id"), dir: dir}
	for _, rtt := range rtts {
		link.SetRTT(rtt)
		first := len(all)
		for _, e := range errands(b.cfg) {
			all = append(all, told{e.name, rtt, map[string][]float64{}, map[string]int64{}})
		}
		for range b.cfg.runs {
			for _, w := range ways {
				if _, err := exec.LookPath(w.program(b.cfg, &t)); err != nil || !wants(b.cfg.mounts, w.name) {
					continue
				}
				if err := b.errandsBy(&w, t, link, all[first:]); err != nil {
					return nil, fmt.Errorf("%s: %w", w.name, err)
				}
			}
		}
	}
	return all, nil
}

// program is the last that w needs.
func (w *way) program(cfg *config, t *trip) string {
	if w.copies != nil {
		return w.copies(cfg, t, "", "")[0]
	}
	_, args := w.mounts[len(w.mounts)-1](cfg, t)
	return args[0]
}

func fillSource(cfg *config, dir string) error {
	files, dirs, bytes := remoteSizes(cfg)
	for _, t := range []struct {
		name        string
		files, dirs int
	}{{"few", files, max(1, files/100)}, {"many", 2 * dirs, dirs}, {"ls", 1000, 1}} {
		if err := writeTree(filepath.Join(dir, t.name), t.files, t.dirs); err != nil {
			return err
		}
	}
	if err := os.WriteFile(dir+"/small", make([]byte, 4096), 0o644); err != nil {
		return err
	}
	// What was changed within the second of the clock is looked at again.
	defer time.Sleep(3 * time.Second)
	return writeBig(dir+"/big", bytes)
}

// errandsBy does all errands in one way, and notes what they took.
func (b *bed) errandsBy(w *way, t trip, link *testbed.Proxy, notes []told) (err error) {
	var end func() error
	skipped := false
	defer func() {
		if end != nil {
			err = errors.Join(err, end())
		}
	}()
	for i, e := range errands(b.cfg) {
		if w.copies != nil && e.copies == "" || w.oneFile && e.copies != "big" || e.writes && !w.writable {
			continue
		}
		before := notes[i].took[w.name]
		if skipped = len(before) > 0 && before[0] > tooSlow.Seconds() || e.again && skipped; skipped {
			continue
		}
		if !e.again {
			if end != nil {
				if err := end(); err != nil {
					return err
				}
			}
			b.made++
			t.at = filepath.Join(b.dir, "remote"+strconv.Itoa(b.made))
			if end, err = w.begin(b.cfg, &t); err != nil {
				return err
			}
		}
		_, down := link.Bytes()
		began := time.Now()
		at := t.in("mnt")
		if w.copies != nil {
			at = t.in("copy")
			if err := command(w.copies(b.cfg, &t, e.copies, at)...); err != nil {
				return err
			}
		}
		if w.copies == nil || e.copies != "big" { // who copies a file has it
			if err := e.on(at); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		took := time.Since(began)
		log.Printf("%s, %v, %s: %v", e.name, notes[i].rtt, w.name, took.Round(time.Millisecond))
		notes[i].took[w.name] = append(notes[i].took[w.name], took.Seconds())
		_, after := link.Bytes()
		notes[i].down[w.name] = after - down
	}
	return nil
}

// begin makes the mounts of w, if it has any, and returns what ends them.
func (w *way) begin(cfg *config, t *trip) (end func() error, err error) {
	for _, name := range []string{"mnt", "low", "upper", "work", "copy"} {
		if err := os.MkdirAll(t.in(name), 0o755); err != nil {
			return nil, err
		}
	}
	var up []*mounted
	at := t.at
	end = func() (err error) {
		for _, m := range slices.Backward(up) {
			err = errors.Join(err, m.stop())
		}
		return errors.Join(err, os.RemoveAll(at))
	}
	for _, mount := range w.mounts {
		point, args := mount(cfg, t)
		k := &kind{name: w.name, tells: args[0] == cfg.migratefs, args: func(*place) []string { return args }}
		m, err := k.start(&place{point: point})
		if err != nil {
			return nil, errors.Join(err, end())
		}
		up = append(up, m)
	}
	return end, nil
}
