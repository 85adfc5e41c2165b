package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// fsType is the type of our mounts in /proc/self/mountinfo.
const fsType = "fuse.migratefs"

// mountInfo is one line of /proc/self/mountinfo, as far as it matters here.
type mountInfo struct {
	point  string
	fsType string
	dev    string // major:minor
	id     string
	opts   string // of the filesystem, behind commas: ",rw,..."
}

// mounts lists the mounts of this thread's namespace, the last made last.
func mounts() ([]mountInfo, error) { return mountsOf("/proc/thread-self/mountinfo") }

func mountsOf(file string) ([]mountInfo, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var ms []mountInfo
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		// 36 35 98:0 /root /point opts - type source superopts
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if ok && len(l) >= 5 && len(r) >= 1 {
			ms = append(ms, mountInfo{point: unoctal(l[4]), fsType: r[0], dev: l[2], id: l[0], opts: "," + r[len(r)-1]})
		}
	}
	return ms, sc.Err()
}

// unoctal undoes the kernel's quoting of names in mountinfo (\040 and so on).
func unoctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt returns the topmost mount on point.
func mountAt(point string) (m mountInfo, ok bool) {
	ms, _ := mounts()
	for _, x := range ms {
		if x.point == point {
			m, ok = x, true
		}
	}
	return m, ok
}

// howToUnmount is what can be asked for beside the mountpoint.
type howToUnmount struct {
	lazy      bool   // also what is in use; it ends with its last user
	force     bool   // cut the daemon off: requests under way fail
	readOnly  bool   // what is in use becomes read-only
	helper    bool   // for umount(8), which says little
	verbose   bool   // unless it is asked to say what was done
	namespace string // where the mount is: a file as /proc/PID/ns/mnt, or a pid
}

// unmount unmounts point, by umount2(2) as root and by fusermount3 else.
func unmount(point string, how howToUnmount) error {
	if isRoot() {
		flags := unix.UMOUNT_NOFOLLOW
		if how.lazy {
			flags |= unix.MNT_DETACH
		}
		if how.force {
			flags |= unix.MNT_FORCE
		}
		return unix.Unmount(point, flags)
	}
	args := []string{"-u", "--", point}
	if how.lazy {
		args = append([]string{"-z"}, args...)
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "busy") {
			return unix.EBUSY
		}
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func newUmountCommand() *cobra.Command {
	var all bool
	var how howToUnmount
	c := &cobra.Command{
		Use:     "umount [--lazy] MOUNTPOINT | --all",
		Aliases: []string{"unmount"},
		Short:   "End a mount, and wait until everything is written",
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) > 0) || len(args) > 1 {
				return usageErrorf("migratefs umount: give one mountpoint, or --all")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if all {
				return umountAll(how)
			}
			err := umountOne(args[0], how)
			if how.helper {
				return asMountError(err)
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "end every migratefs mount of this host")
	f.BoolVarP(&how.lazy, "lazy", "l", false, "take a mount that is in use out of sight; it ends with its last user")
	// The rest is what umount(8) gives to a helper.
	f.BoolVar(&how.helper, "helper", false, "called by umount(8): MOUNTPOINT [-flnrv] [-N NAMESPACE] [-t TYPE]")
	f.BoolVarP(&how.force, "force", "f", false, "")
	f.BoolVarP(&how.readOnly, "read-only", "r", false, "")
	f.BoolVarP(&how.verbose, "verbose", "v", false, "")
	f.StringVarP(&how.namespace, "namespace", "N", "", "")
	f.BoolP("no-mtab", "n", false, "")
	f.StringP("types", "t", "", "")
	for _, name := range []string{"helper", "force", "read-only", "verbose", "namespace", "no-mtab", "types"} {
		_ = f.MarkHidden(name)
	}
	return c
}

func umountAll(how howToUnmount) error {
	ms, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(ms) - 1; i >= 0; i-- {
		if ms[i].fsType == fsType {
			errs = append(errs, umountOne(ms[i].point, how))
		}
	}
	return errors.Join(errs...)
}

// umountOne unmounts point and returns when its daemon has ended.
func umountOne(point string, how howToUnmount) error {
	var m mountInfo
	err := inNamespace(how.namespace, func() (err error) {
		m, err = findMount(point)
		return err
	})
	if err != nil {
		return err
	}
	if owner := m.owner(); !isRoot() && owner != os.Geteuid() {
		return fmt.Errorf("%q is user %d's: only they and root may unmount it", point, owner)
	}
	if err := stillRestored(m.point); err != nil && !how.lazy {
		return err
	}
	wait, remounted := ending(m), false
	err = inNamespace(how.namespace, func() error {
		err := unmount(m.point, how)
		if how.readOnly && errors.Is(err, unix.EBUSY) {
			remounted = true
			err = remountWith(m.point, func(flags uintptr) uintptr { return flags | unix.MS_RDONLY })
		}
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%q is in use: end what uses it (fuser -vm %q lists that), or give --lazy", point, m.point)
	}
	if err != nil {
		return fmt.Errorf("unmount %q: %w", point, err)
	}
	if how.lazy || remounted {
		return nil
	}
	at := otherView(m)
	for end := time.Now().Add(time.Second); at != "" && time.Now().Before(end); at = otherView(m) {
		// Of a process that was killed just now, the namespace is not gone yet.
		time.Sleep(50 * time.Millisecond)
	}
	if at != "" {
		if how.verbose || !how.helper {
			fmt.Printf("migratefs: %s is unmounted here; it is mounted on %s, too, and served there\n", m.point, at)
		}
		return nil
	}
	if err := wait(); err != nil {
		return err
	}
	if how.verbose {
		fmt.Printf("migratefs: %s is unmounted, and its daemon has ended\n", m.point)
	}
	return forgetRestore(m.point)
}

// inNamespace calls do in another mount namespace, or here if that is "".
func inNamespace(namespace string, do func() error) error {
	if namespace == "" {
		return do()
	}
	if _, err := strconv.Atoi(namespace); err == nil {
		namespace = "/proc/" + namespace + "/ns/mnt"
	}
	answer := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it ends with this goroutine.
		runtime.LockOSThread()
		answer <- func() error {
			f, err := os.Open(namespace)
			if err != nil {
				return fmt.Errorf("mount namespace: %w", err)
			}
			defer f.Close()
			// setns(2) wants a thread that shares its root and directory with nobody.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("mount namespace %q: %w", namespace, err)
			}
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("mount namespace %q: %w", namespace, err)
			}
			return do()
		}()
	}()
	return <-answer
}

// findMount finds our mount on point, which may be dead: resolving it must not
// ask the mount itself.
func findMount(point string) (mountInfo, error) {
	abs, err := filepath.Abs(point)
	if err != nil {
		return mountInfo{}, err
	}
	if real, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(real, filepath.Base(abs))
	}
	m, ok := mountAt(abs)
	if !ok {
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			m, ok = mountAt(real)
		}
	}
	switch {
	case !ok:
		return m, fmt.Errorf("%q is not mounted", point)
	case m.fsType != fsType:
		return m, fmt.Errorf("%q is a %s mount, not one of migratefs: use umount", point, m.fsType)
	}
	return m, nil
}
