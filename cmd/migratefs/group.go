package main

import "golang.org/x/sys/unix"

// group is the process group that a daemon was started in; 0: it is in the foreground.
//
// While a mount that an automounter has asked for is made (x-systemd.automount,
// autofs), nobody passes its mountpoint but who is in the automounter's process group,
// mount(2) included: others wait for the mount, and so for themselves. Who is in that
// group, though, is not shown what other automounts would bring, but the empty
// directories below. So a daemon deals with its mountpoint in the group of who has
// started it, and with layers in one of its own.
type group int

func startedIn(daemon bool) group {
	if !daemon {
		return 0
	}
	return group(unix.Getpgrp())
}

// leave goes into a group of its own. Where that fails, or rejoin does, it is
// automounts that do not work.
func (g group) leave() {
	if g != 0 {
		_ = unix.Setpgid(0, 0)
	}
}

// rejoin goes back to the group that the daemon was started in.
func (g group) rejoin() {
	if g != 0 {
		_ = unix.Setpgid(0, int(g))
	}
}

// end lets go of the terminal, and of the group, for good.
func (g group) end() {
	if g != 0 {
		_, _ = unix.Setsid()
	}
}
