package main

import "testing"

func TestParseRunc(t *testing.T) {
	for _, c := range []struct {
		args []string
		want runcCommand
	}{
		{nil, runcCommand{bundle: ".", images: "checkpoint"}},
		{[]string{"--version"}, runcCommand{bundle: ".", images: "checkpoint"}},
		{
			// As containerd's shim has it.
			[]string{"--root", "/run/x", "--log", "/l", "--log-format", "json", "restore", "--image-path", "/i", "--work-path", "/w", "--no-pivot", "--bundle", "/b", "--detach", "--pid-file", "/p", "web"},
			runcCommand{verb: "restore", id: "web", bundle: "/b", images: "/i"},
		},
		{
			// As conmon has it.
			[]string{"--log=/l", "--systemd-cgroup", "restore", "--file-locks", "--manage-cgroups-mode", "soft", "-b", "/b", "--image-path=/i", "--detach", "4be1"},
			runcCommand{verb: "restore", id: "4be1", bundle: "/b", images: "/i"},
		},
		{
			// As crun can be called, which has options that runc lacks.
			[]string{"--cgroup-manager", "cgroupfs", "--log-level", "debug", "restore", "-d", "-b", "/b", "--image-path", "/i", "--lsm-profile", "selinux:x", "web"},
			runcCommand{verb: "restore", id: "web", bundle: "/b", images: "/i"},
		},
		{[]string{"--root", "/run/x", "--cgroup-manager", "disabled", "delete", "--force", "web"}, runcCommand{verb: "delete", id: "web", bundle: ".", images: "checkpoint"}},
		{[]string{"delete", "--force", "web"}, runcCommand{verb: "delete", id: "web", bundle: ".", images: "checkpoint"}},
	} {
		if got := parseRunc(c.args); *got != c.want {
			t.Errorf("%q: %+v, want %+v", c.args, *got, c.want)
		}
	}
}
