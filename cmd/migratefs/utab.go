package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// umount(8) asks a helper to unmount, and ours waits for the daemon, so that the
// layers can be unmounted next. But which helper that is umount(8) mostly decides
// by the number that statfs(2) tells of a filesystem, which is "fuse" for all of
// FUSE. Only where its own notes have a line about the mountpoint does it look at
// the type, and at the helper that the line names (libmount's context_umount.c).

const (
	umountHelper = "/sbin/umount." + fsType

	// utab is where mount(8) notes what the kernel does not keep.
	utab = "/run/mount/utab"
)

// nameUmountHelper has mount(8) note that umount(8) is to call our helper: with -f
// it does everything but mount. The note of a mount that umount(8) did not end
// stays, and does for the next one on that point.
func nameUmountHelper(source, point string) error {
	if _, err := os.Stat(umountHelper); err != nil || !isRoot() || hasUmountHelper(point) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mount", "-f", "-i", "-t", fsType, "-o", "helper="+fsType, "--", source, point).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount -f: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if !hasUmountHelper(point) {
		return errors.New("mount -f wrote no note")
	}
	return nil
}

// hasUmountHelper reports whether mount(8) has noted our helper for point.
func hasUmountHelper(point string) bool {
	f, err := os.Open(utab)
	if err != nil {
		return false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		ours, here := false, false
		for _, field := range strings.Fields(sc.Text()) {
			name, value, _ := strings.Cut(field, "=")
			ours = ours || name == "OPTS" && strings.Contains(value, "helper="+fsType)
			here = here || name == "TARGET" && unoctal(value) == point
		}
		if ours && here {
			return true
		}
	}
	return false
}
