package criu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// known are the images that CRIU 1.3 to 4.2 write, without the number that many
// have behind a dash.
var known = func() map[string]bool {
	m := make(map[string]bool)
	for _, name := range strings.Fields(`
		apparmor autofs binfmt-misc bpfmap-data bpfmap-file cgroup core cpuinfo creds eventfd eventpoll
		eventpoll-tfd ext-files fanotify fanotify-mark fdinfo fifo fifo-data filelocks files fs ghost-file ids
		ifaddr inetsk inotify inotify-wd inventory ip6tables ipcns-msg ipcns-sem ipcns-shm ipcns-var iptables
		itimers memfd mm mountpoints netdev netlinksk netns netns-ct netns-exp nftables ns-files packetsk pagemap
		pagemap-shmem pages pages-shmem pidfd pidns pipes pipes-data posix-timers pstree reg-files remap-fpath
		rlimit route route6 rule seccomp sigacts signal-p signal-s signalfd sk-queues tcp-stream timens timerfd
		tmpfs tmpfs-dev tty tty-data tty-info tunfile unixsk userns utsns vmas`) {
		m[name] = true
	}
	return m
}()

// tools are the programs that CRIU starts to restore what is in an image.
var tools = map[string]string{
	"tmpfs": "tar", "tmpfs-dev": "tar", "ifaddr": "ip", "route": "ip", "route6": "ip", "rule": "ip",
	"iptables": "iptables-restore", "ip6tables": "ip6tables-restore",
}

// listing looks for images that nobody here knows, and for those that CRIU needs
// a program for.
func (l *loader) listing() error {
	entries, err := fs.ReadDir(l.fsys, ".")
	if err != nil {
		return fmt.Errorf("list of images: %w", bare(err))
	}
	for _, e := range entries {
		img, ok := strings.CutSuffix(e.Name(), ".img")
		if !ok {
			continue
		}
		img = strings.TrimSuffix(img, ".tar.gz")
		kind := strings.TrimRight(img, "0123456789abcdef")
		if kind = strings.TrimSuffix(kind, "-"); len(kind) == len(img) || !known[kind] {
			kind = img
		}
		if !known[kind] {
			l.warn("image %q is of a kind that is not known here: a plugin of CRIU may need it", clip(e.Name()))
		}
		if t := tools[kind]; t != "" {
			l.c.tools = append(l.c.tools, t)
		}
	}
	return nil
}

// maxLog is how much of the end of CRIU's log is read.
const maxLog = 256 << 10

// leftRunning warns of checkpoints whose tasks went on where they were. Images do
// not say so; the log of the dump does, if it is still there.
func (l *loader) leftRunning() error {
	f, err := l.fsys.Open("dump.log")
	if err != nil {
		return nil // it is not needed for anything else
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	if s, ok := f.(io.Seeker); ok && st.Size() > maxLog {
		if _, err := s.Seek(-maxLog, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLog))
	if err == nil && bytes.Contains(b, []byte("Unfreezing tasks into 1\n")) {
		l.twoCopies("the checkpoint was made with --leave-running: the process goes on where it is, and changes its files under the one that is restored")
	}
	return nil
}

func (l *loader) twoCopies(why string) {
	l.obstacle(Obstacle{
		Level: Caution, What: "two copies", Why: why,
		Remedy: "end it before this one runs, and dump again if it has changed anything since",
	})
}

// ignoreMissing: zombies and tasks that share everything have no such image.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
