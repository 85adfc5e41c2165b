package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

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
}

// mounts lists the mounts of this namespace, the last made last.
func mounts() ([]mountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
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
			ms = append(ms, mountInfo{point: unoctal(l[4]), fsType: r[0], dev: l[2]})
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

// unmount unmounts point, by umount2(2) as root and by fusermount3 else.
func unmount(point string, lazy bool) error {
	if isRoot() {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(point, flags)
	}
	args := []string{"-u", "-q", "--", point}
	if lazy {
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
	var all, lazy bool
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
				return umountAll(lazy)
			}
			return umountOne(args[0], lazy)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "end every migratefs mount of this host")
	c.Flags().BoolVarP(&lazy, "lazy", "l", false, "take a mount that is in use out of sight; it ends with its last user")
	return c
}

func umountAll(lazy bool) error {
	ms, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(ms) - 1; i >= 0; i-- {
		if ms[i].fsType == fsType {
			errs = append(errs, umountOne(ms[i].point, lazy))
		}
	}
	return errors.Join(errs...)
}

func umountOne(point string, lazy bool) error {
	m, err := findMount(point)
	if err != nil {
		return err
	}
	if err := stillRestored(m.point); err != nil && !lazy {
		return err
	}
	wait := ending(m)
	err = unmount(m.point, lazy)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%q is in use: end what uses it (fuser -vm %q lists that), or give --lazy", point, m.point)
	}
	if err != nil {
		return fmt.Errorf("unmount %q: %w", point, err)
	}
	if lazy {
		return nil
	}
	if err := wait(); err != nil {
		return err
	}
	return forgetRestore(m.point)
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
