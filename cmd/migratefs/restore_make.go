package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// # What a restore that fails leaves
//
// Each step pushes what takes it back, and rollBack does that, the last first; what is
// on the leash (leash.go) does it by itself if the command is not there to. The source
// is only read. What is left is CRIU's log, in the directory that the message names.
//
//	step                        fails by                      what happens
//	check                       a wrong option, no images,    nothing was touched
//	                            damaged ones, another kind of
//	                            machine, no criu
//	                            something in the way (--force)  the same. Exit 3
//	prepare: directories, the   no room in /run or beside     the directories go. Exit 1
//	upper, the pid file         the upper; the file is there
//	mountView: the daemon       no ssh, no login, the link    the daemon takes back what it made,
//	                            is cut, no room in the upper  work directory and mount. Exit 32
//	  the files are compared    they changed on the source    the same; all are named
//	  the daemon is killed      later                         CRIU fails, or nothing is restored
//	load: images elsewhere      as check                      as below. Exit 1
//	restore: the helper         no namespaces; killed         with pid 1 everything in there ends
//	  its mounts, criu started  no criu that works            the same, by its own exit
//	  criu restores             a pid that is taken, a kernel the same: CRIU's own words are told,
//	                            that lacks something, no      and what they mean
//	                            room, a file that changed
//	  criu is killed                                          the same
//	  the link is cut           later                         CRIU waits for the source: it goes on
//	                                                          when that is back, or is interrupted
//	  report: the state, the    no room in /run               the same
//	  pid file
//	the command is interrupted  at any step                   what is under way ends; as above. Exit 1
//	the command is killed       at any step before letGo      helper and daemon see the end of the
//	                                                          leash: nothing runs, nothing is mounted.
//	                                                          An upper that was made stays, and the
//	                                                          directories, if there was no mount yet
//	                            after letGo                   the process runs, and all of it is as after
//	                                                          a success, but that nobody was told

// prepare makes the directories. Each is undone if the restore fails.
func (r *restoreCommand) prepare() error {
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	r.id = hex.EncodeToString(b[:])
	r.dir = filepath.Join(runDir, "restore-"+r.id)
	r.plan.View = filepath.Join(r.dir, "root")
	r.plan.State = filepath.Join(r.dir, "criu")
	if r.upper == "" {
		r.upper = filepath.Join(varDir, r.id, "upper")
		if err := r.mkdir(filepath.Dir(r.upper)); err != nil {
			return err
		}
	}
	var err error
	if r.upper, err = filepath.Abs(r.upper); err != nil {
		return err
	}
	if err := r.makeUpper(); err != nil {
		return err
	}
	for _, d := range []string{r.dir, r.plan.View, r.plan.State, r.imagesDir()} {
		if err := r.mkdir(d); err != nil {
			return err
		}
	}
	undo, err := r.tell.prepare()
	if err != nil {
		return err
	}
	r.undo = append(r.undo, undo)
	r.leash, r.hold, err = os.Pipe()
	return err
}

// makeUpper makes the upper if it is not there. One that this restore has made
// goes again, with its work directory, if the restore fails: all that is in
// them is of a process that never ran.
func (r *restoreCommand) makeUpper() error {
	above, err := os.Open(filepath.Dir(r.upper))
	if err != nil {
		return fmt.Errorf("upper %q: %w", r.upper, bare(err))
	}
	name := filepath.Base(r.upper)
	if err := os.Mkdir(inside(above, name), 0o755); err != nil {
		above.Close()
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return fmt.Errorf("upper %q: %w", r.upper, bare(err))
	}
	made := []string{name}
	if work := defaultWork(r.upper); !isBelow(work, r.upper) {
		if _, err := os.Lstat(work); errors.Is(err, os.ErrNotExist) {
			made = append(made, filepath.Base(work))
		}
	}
	r.undo = append(r.undo, func() {
		defer above.Close()
		if _, mounted := mountAt(r.plan.View); mounted {
			return
		}
		for _, name := range made {
			_ = os.RemoveAll(inside(above, name))
		}
	})
	return nil
}

// mkdir makes a directory that only root gets into, with its parents.
func (r *restoreCommand) mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory %q: %w", dir, bare(err))
	}
	r.undo = append(r.undo, func() { _ = os.Remove(dir) })
	return nil
}

// rollBack undoes what was done, the last first. CRIU's log stays.
func (r *restoreCommand) rollBack() {
	for _, f := range slices.Backward(r.undo) {
		f()
	}
	r.undo = nil
}

// mountView mounts the overlay by a daemon in the background, in this mount
// namespace: the daemon and its ssh must never live in the view they serve.
func (r *restoreCommand) mountView(ctx context.Context) error {
	opts := []string{
		"criu=" + escapeOption(r.images), "lowerdir=" + escapeOption(sourceTarget(r.from)),
		"upperdir=" + escapeOption(r.upper), "view=" + r.view, "hard", "verify=" + r.verify,
	}
	for _, m := range r.maps {
		opts = append(opts, "map="+escapeOption(m))
	}
	if r.noLocal {
		opts = append(opts, "no_local")
	}
	if isRemote(r.images) {
		opts = append(opts, "images_at="+r.imagesDir())
	}
	if r.sshConfig != "" {
		abs, err := filepath.Abs(r.sshConfig)
		if err != nil {
			return err
		}
		opts = append(opts, "ssh_config="+escapeOption(abs))
	}
	args := []string{"-o", strings.Join(opts, ",")}
	for _, o := range r.options {
		args = append(args, "-o", o)
	}
	r.undo = append(r.undo, r.unmount, r.unmountImages)
	daemon, text, err := startDaemon(ctx, append(args, "--", r.plan.View), r.leash)
	r.daemon = daemon
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err == nil {
		said, notes, _ := strings.Cut(text, "\n")
		r.say("%s", strings.TrimPrefix(said, "migratefs: "))
		if notes != "" {
			fmt.Fprintln(os.Stderr, notes)
		}
	}
	return err
}

// imagesDir is where images of another host are shown.
func (r *restoreCommand) imagesDir() string { return filepath.Join(r.dir, "images") }

// unmountImages ends that: what was restored does not need them.
func (r *restoreCommand) unmountImages() {
	if _, ok := mountAt(r.imagesDir()); ok && unmount(r.imagesDir(), howToUnmount{}) != nil {
		_ = unmount(r.imagesDir(), howToUnmount{lazy: true})
	}
}

var errInterrupted = errors.New("interrupted: everything is as it was before")

// escapeOption quotes what separates options and lowers.
func escapeOption(v string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(v)
}

// unmount ends the view, if it is mounted, and waits for the end of its daemon.
func (r *restoreCommand) unmount() {
	m, mounted := mountAt(r.plan.View)
	if mounted && isDead(m.point) {
		// What its daemon has noted of it; while it is there the number is its own.
		_ = os.Remove(registryFile(m))
		_ = os.Remove(optionsFile(m))
	}
	if mounted && unmount(m.point, howToUnmount{}) != nil {
		_ = unmount(m.point, howToUnmount{lazy: true})
	}
	if r.daemon != nil {
		_, _ = r.daemon.Wait()
	}
}
