package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// runcCommand is migratefs-runc, an OCI runtime for engines that restore a
// container whose files are on another host: runc, with a mount before its
// restore and its end after its delete.
//
// What to mount is said by root in containersDir/ID.options, and never by the
// container's annotations: those are the words of whoever asked for the
// container, and mount options read and write as root.
type runcCommand struct {
	verb   string // restore, delete, ...; "": none
	id     string
	bundle string
	images string
}

const (
	containersDir = runDir + "/containers"

	optionsSuffix = ".options" // what to mount: the mount options, on one line
	mountSuffix   = ".mount"   // where it is mounted, until the container is deleted

	runcEnv = "MIGRATEFS_RUNC" // another runtime than the one in PATH
)

func newRuncCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "runc ARGUMENT...",
		Short: "An OCI runtime: runc, that restores containers on files of another host",
		Long: strings.TrimSpace(`
Run runc with the same arguments. Before a restore, mount on the container's
rootfs what ` + containersDir + `/ID` + optionsSuffix + ` says: the
options of a mount, on one line, "lowerdir=root@source:/path/of/the/rootfs" for
one. criu= and hard are added, and upperdir=` + varDir + `/ID/upper unless
there is one. When the container is deleted, the mount ends; its upper stays.
A container without that file is runc's alone.

Engines find this as a runtime called migratefs-runc: see docs/containers.md.
Called migratefs-crun it runs crun; ` + runcEnv + ` names any other.`),
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
				return c.Help()
			}
			return runcWrapper(args)
		},
	}
}

func runcWrapper(args []string) error {
	name := os.Getenv(runcEnv)
	if name == "" {
		// Called migratefs-crun, it is crun.
		var ours bool
		if name, ours = strings.CutPrefix(filepath.Base(os.Args[0]), "migratefs-"); !ours {
			name = "runc"
		}
	}
	runc, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%w: install runc, or name another runtime in %s", err, runcEnv)
	}
	r := parseRunc(args)
	switch r.verb {
	case "restore":
		err = r.restore(runc, args)
	case "delete":
		err = r.delete(runc, args)
	default:
		err = unix.Exec(runc, append([]string{runc}, args...), os.Environ())
	}
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return &codeError{max(1, ee.ExitCode()), errors.New("")} // it has said why
	}
	return err
}

// runcValues are the options of runc and crun, before and behind their restore,
// that are followed by a value.
var runcValues = []string{
	"log", "log-format", "root", "criu", "rootless",
	"log-level", "cgroup-manager", // crun's
	"console-socket", "image-path", "work-path", "manage-cgroups-mode", "bundle", "b", "pid-file", "empty-ns", "lsm-profile", "lsm-mount-context",
	"preserve-fds",
}

// parseRunc finds in runc's arguments what matters here.
func parseRunc(args []string) *runcCommand {
	r := &runcCommand{bundle: ".", images: "checkpoint"}
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			if r.verb == "" {
				r.verb = args[i]
			} else if r.id == "" {
				r.id = args[i]
			}
			continue
		}
		name, value, has := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !has && slices.Contains(runcValues, name) && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "bundle", "b":
			r.bundle = value
		case "image-path":
			r.images = value
		}
	}
	return r
}

// file is the path of a file about the container.
func (r *runcCommand) file(suffix string) string {
	return filepath.Join(containersDir, r.id+suffix)
}

func (r *runcCommand) restore(runc string, args []string) error {
	options, err := r.options()
	if err != nil {
		return err
	}
	if options == "" {
		return unix.Exec(runc, append([]string{runc}, args...), os.Environ())
	}
	root, err := r.rootfs()
	if err != nil {
		return err
	}
	// The engine's own descriptors must not live on in the daemon.
	closeOnExec()
	daemon, _, err := startDaemon(context.Background(), []string{"-o", options, "--", root}, nil)
	if err != nil {
		return err
	}
	err = os.WriteFile(r.file(mountSuffix), []byte(root+"\n"), 0o600)
	if err == nil {
		err = r.run(runc, args)
	}
	if err != nil {
		_ = r.unmount(root)
		_, _ = daemon.Wait()
	}
	return err
}

// options returns the mount options for the container, "" if it has none.
func (r *runcCommand) options() (string, error) {
	if r.id == "" || r.id != filepath.Base(r.id) {
		return "", nil // runc will say what is wrong
	}
	b, err := os.ReadFile(r.file(optionsSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	given := strings.TrimSpace(string(b))
	if !strings.Contains(given, "lowerdir=") || strings.ContainsAny(given, "\n\x00") {
		return "", fmt.Errorf("%q: want mount options on one line, lowerdir= among them", r.file(optionsSuffix))
	}
	images, err := filepath.Abs(r.images)
	if err != nil {
		return "", err
	}
	options := "criu=" + escapeOption(images) + ",hard," + given
	if !strings.Contains(","+given, ",upperdir=") {
		upper := filepath.Join(varDir, r.id, "upper")
		if err := os.MkdirAll(upper, 0o755); err != nil {
			return "", fmt.Errorf("upper %q: %w", upper, bare(err))
		}
		options += ",upperdir=" + escapeOption(upper)
	}
	return options, nil
}

// rootfs returns where the container's root directory is to be.
func (r *runcCommand) rootfs() (string, error) {
	name := filepath.Join(r.bundle, "config.json")
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var config struct {
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return "", fmt.Errorf("%q: %w", name, err)
	}
	root := config.Root.Path
	if root == "" {
		return "", fmt.Errorf("%q names no root directory: give root.path, as runc wants it", name)
	}
	if !filepath.IsAbs(root) {
		root = filepath.Join(r.bundle, root)
	}
	return filepath.Abs(root)
}

// closeOnExec keeps every descriptor but the standard streams from programs that
// are started later.
func closeOnExec() {
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
}

// run runs runc to its end, on our standard streams.
func (r *runcCommand) run(runc string, args []string) error {
	cmd := exec.Command(runc, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func (r *runcCommand) delete(runc string, args []string) error {
	b, err := os.ReadFile(r.file(mountSuffix))
	if err != nil || r.id == "" || r.id != filepath.Base(r.id) {
		return unix.Exec(runc, append([]string{runc}, args...), os.Environ())
	}
	if err := r.run(runc, args); err != nil {
		return err
	}
	return r.unmount(strings.TrimSuffix(string(b), "\n"))
}

// unmount ends the container's mount. Of a container that was killed just now the
// last process may not be gone yet; a mount that is in use for longer is taken
// out of sight, and ends with its last user.
func (r *runcCommand) unmount(root string) error {
	if m, ok := mountAt(root); ok && m.fsType == fsType {
		quiet := howToUnmount{helper: true}
		err := umountOne(root, quiet)
		for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
			err = umountOne(root, quiet)
		}
		if err != nil {
			quiet.lazy = true
			err = umountOne(root, quiet)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(r.file(mountSuffix))
}
