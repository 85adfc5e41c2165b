package packages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// booted is a systemd that runs a bare root in which migratefs is installed.
type booted struct {
	t   *testing.T
	pid int // of systemd, here
	log *testbed.Output
}

// boot starts a systemd that can reach nothing of this host: every namespace is its
// own, and so are the root, /dev, /run, /tmp and the tree of cgroups; what belongs to
// the whole kernel (/proc/sys, /sys) is read-only, and the capabilities to set the
// clock, load modules and so on are gone. Before is a script of bash that prepares
// root; $D holds the package.
func boot(t *testing.T, before string) *booted {
	t.Helper()
	testbed.NeedFUSE(t)
	minimal, more := bareRoots(t)
	dir := testbed.TempDir(t)
	cgroup := ""
	for _, m := range testbed.Mounts() {
		if m.Type == "cgroup2" {
			cgroup = filepath.Join(m.Point, filepath.Base(dir))
		}
	}
	if cgroup == "" {
		t.Fatal("no cgroup2 filesystem is mounted here")
	}
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// What was in it is dying, but may not be dead yet.
		testbed.Until(t, "the end of "+cgroup, func() bool {
			_ = exec.Command("find", cgroup, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
			_, err := os.Stat(cgroup)
			return err != nil
		})
	})

	b := &booted{t: t, log: &testbed.Output{}}
	cmd := exec.Command("unshare", "-m", "-p", "-u", "-i", "-n", "-f", "--kill-child", "--propagation", "private", "bash", "-euc", `
		# Before the namespace is made, of which it becomes the root.
		echo 0 >"$CGROUP/cgroup.procs"
		exec unshare -C bash -euc "$1"`, "bash", makeRoot+`
		umount root/sys
		mount -t tmpfs -o mode=755 sys root/sys
		mkdir -p root/sys/fs/cgroup
		mount -t cgroup2 cgroup2 root/sys/fs/cgroup
		mount -o remount,ro root/sys
		mount --bind root/proc/sys root/proc/sys
		mount -o remount,bind,ro root/proc/sys
		[ ! -e root/proc/sysrq-trigger ] || mount --bind root/dev/null root/proc/sysrq-trigger
		mount -t tmpfs tmp root/tmp
		mknod -m 600 root/dev/console c 1 3
		mknod -m 600 root/dev/autofs c 10 235
		# What would look after hardware, terminals and users that are not here.
		for unit in systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service \
			systemd-logind.service systemd-modules-load.service systemd-sysctl.service systemd-networkd.service getty.target console-getty.service \
			systemd-remount-fs.service systemd-journald-audit.socket systemd-tmpfiles-clean.timer \
			dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount sys-kernel-config.mount; do
			ln -sfn /dev/null root/etc/systemd/system/$unit
		done
		`+before+`
		hostname bare
		cd root
		pivot_root . .
		umount -l .
		cd /
		# As systemd has it where it is not in a container.
		mount --make-rshared /
		# systemd-tmpfiles empties /tmp: whose it is, is looked at before.
		if grep -v -E " / /(l|proc|run|dev|tmp|sys|sys/fs/cgroup)? | /sys /proc/sys | /null /proc/sysrq-trigger | /(upper|lower) /(old|new)scratch " /proc/self/mountinfo; then
			echo "there is more than the root's own"
			exit 1
		fi
		exec env -i PATH=/usr/sbin:/usr/bin container=test setpriv --bounding-set=-sys_time,-sys_boot,-sys_module,-syslog,-sys_rawio /usr/lib/systemd/systemd`)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ROOTS="+more+":"+minimal, "CGROUP="+cgroup, "BINARY="+testbed.Build(t), "MODULE="+testbed.ModuleDir())
	cmd.Stdout, cmd.Stderr = b.log, b.log
	unshare, err := testbed.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	// The death of the first process of a namespace is the death of all.
	t.Cleanup(unshare.KillTree)
	testbed.Until(t, "systemd to run", func() bool {
		for _, pid := range testbed.Descendants(unshare.Pid) {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "systemd\n" {
				b.pid = pid
				return true
			}
		}
		if unshare.WaitFor(0) {
			t.Fatalf("systemd did not start:\n%s", b.log)
		}
		return false
	})
	testbed.Until(t, "systemd to be up", func() bool {
		out, _ := b.run("systemctl", "is-active", "multi-user.target")
		return out == "active\n"
	})
	return b
}

// run runs a command as a login of root on the booted system would.
func (b *booted) run(args ...string) (string, error) {
	enter := []string{"-t", strconv.Itoa(b.pid), "-m", "-p", "-u", "-i", "-n", "-C", "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"}
	out, err := exec.Command("nsenter", append(enter, args...)...).CombinedOutput()
	return string(out), err
}

// sh runs a script of sh there, which must print what is wanted.
func (b *booted) sh(script, want string) {
	b.t.Helper()
	// The journal is written when it suits journald.
	const sync = "journalctl() { command journalctl --sync; command journalctl \"$@\"; }\n"
	out, err := b.run("sh", "-ec", sync+script)
	if err != nil || out != want {
		journal, _ := b.run("journalctl", "-b", "--no-pager", "-n", "40")
		b.t.Fatalf("%s\n%v, and prints\n%s\nwant\n%s\n%s", script, err, out, want, journal)
	}
}

// The unit, as docs/operating.md has it set up, and as other units meet it.
func TestUnitUnderSystemd(t *testing.T) {
	document := ""
	for _, text := range fenced.FindAllString(documents(t)["docs/operating.md"], -1) {
		if strings.Contains(text, "systemctl enable") {
			document = text
		}
	}
	// # cat FILE, what FILE has, and commands.
	m := regexp.MustCompile("(?s)^```\n# cat (\\S+)\n(.*?)\n((?:# [^\n]*\n)+)```$").FindStringSubmatch(document)
	if m == nil {
		t.Fatalf("docs/operating.md sets up no unit:\n%s", document)
	}
	conf, text, commands := m[1], m[2], strings.ReplaceAll("\n"+m[3], "\n# ", "\n")

	b := boot(t, `
		install -D "$BINARY" root/usr/bin/migratefs
		install -D -m 644 "$MODULE/packaging/migratefs@.service" root/usr/lib/systemd/system/migratefs@.service
		mkdir root/etc/migratefs root/oldscratch root/newscratch root/scratch
		(
			cd root/l
			`+prepared+`
		)
		mount --bind root/l/lower root/oldscratch
		mount --bind root/l/upper root/newscratch
		cat >root`+conf+` <<-'E'
			`+text+`
		E
		printf 'OPTIONS=lowerdir=/nothing,upperdir=/newscratch\nMOUNTPOINT=/scratch\n' >root/etc/migratefs/bad.conf
		# Another unit, and one that has a mount namespace of its own since before.
		printf '[Service]\nType=oneshot\nExecStart=/bin/cat /scratch/plain\n' >root/etc/systemd/system/other.service
		printf '[Service]\nPrivateTmp=yes\nProtectSystem=strict\nExecStart=/bin/sh -c "until cat /scratch/plain; do sleep 0.1; done 2>/dev/null"\n' >root/etc/systemd/system/apart.service`)

	b.sh(`systemctl start apart
		{ `+commands+` } >/run/printed 2>&1
		grep -o "Created symlink.*wants/.* →" /run/printed
		grep -o "/scratch is mounted" /run/printed
		findmnt -no FSTYPE /scratch
		systemctl show -p Type -p ActiveState -p SubState migratefs@scratch
		systemctl start other
		journalctl -u other -o cat -t cat
		while systemctl -q is-active apart; do sleep 0.1; done
		journalctl -u apart -o cat -t sh`, `Created symlink /etc/systemd/system/multi-user.target.wants/migratefs@scratch.service →
/scratch is mounted
fuse.migratefs
Type=notify
ActiveState=active
SubState=running
plain
plain
`)

	// What comes up under the unit's hardening comes up as it does without.
	scratch := fmt.Sprintf("/proc/%d/root/scratch", b.pid)
	out, err := exec.Command("sh", "-c", work, "sh", scratch).CombinedOutput()
	if want := worked(t, "", "migrate"); err != nil || string(out) != want {
		t.Errorf("%v, and under the unit\n%s\nwithout\n%s", err, out, want)
	}

	b.sh(`systemctl stop migratefs@scratch
		systemctl show -p ActiveState -p Result migratefs@scratch
		grep -c fuse /proc/mounts || ls -A /scratch /oldscratch/sub
		cat /newscratch/sub/moved
		pidof migratefs || echo "no daemon"`, `Result=success
ActiveState=inactive
0
/oldscratch/sub:

/scratch:
plain
more
no daemon
`)

	// One that dies is not begun anew by itself, and is by whoever starts it.
	b.sh(`systemctl start migratefs@scratch
		systemctl kill -s KILL migratefs@scratch
		while systemctl -q is-active migratefs@scratch; do sleep 0.1; done
		systemctl show -p ActiveState -p Result migratefs@scratch
		cat /scratch/sub/moved 2>&1 || :
		systemctl start migratefs@scratch
		cat /scratch/sub/moved
		systemctl stop migratefs@scratch
		grep -c fuse /proc/mounts || :`, `Result=signal
ActiveState=failed
cat: /scratch/sub/moved: Transport endpoint is not connected
plain
more
0
`)

	// Messages are in the journal as it has them: with a level and fields, and of one kind
	// not as many as there are.
	b.sh(`systemctl start migratefs@scratch
		i=0
		while [ $i -lt 60 ]; do
			migratefs set /scratch log_level=info >/run/x
			i=$((i+1))
		done
		journalctl -u migratefs@scratch PRIORITY=6 SYSLOG_IDENTIFIER=migratefs MIGRATEFS_BY="control socket" MIGRATEFS_SETTINGS=log_level=info -o cat >/run/x
		head -n 1 /run/x
		[ $(wc -l </run/x) -ge 20 ] && [ $(wc -l </run/x) -lt 60 ] || wc -l /run/x
		systemctl stop migratefs@scratch`, `settings changed mount=/scratch by="control socket" settings="log_level=info"
`)

	b.sh(`systemctl start migratefs@bad 2>/dev/null || echo "it fails"
		command journalctl --sync
		systemctl status --no-pager --lines 10 migratefs@bad | grep -o -e "status=32/[a-z/]*" -e "migratefs: .*" | sort -u`, `it fails
migratefs: lower "/nothing": no such file or directory: create it, or name one that exists
status=32/n/a
`)
}

// Lines of fstab, as docs/operating.md has them and with what systemd.mount(5) adds:
// what is to be mounted at the boot is there afterwards, what is to be mounted when
// somebody looks is then, whoever that is; and a boot does not wait for a source.
func TestFstabUnderSystemd(t *testing.T) {
	fstab := ""
	for _, text := range fenced.FindAllString(documents(t)["docs/operating.md"], -1) {
		if strings.Contains(text, " /scratch  migratefs ") {
			fstab = strings.Trim(text, "`\n")
		}
	}
	if !strings.Contains(fstab, "nofail,x-systemd.automount") || !strings.Contains(fstab, "x-systemd.requires-mounts-for=") {
		t.Fatalf("docs/operating.md has no lines of fstab:\n%s", fstab)
	}
	b := boot(t, `
		install "$BINARY" root/usr/bin/migratefs
		for name in mount.migratefs mount.fuse.migratefs umount.fuse.migratefs; do
			ln -s ../bin/migratefs root/usr/sbin/$name
		done
		mkdir -p root/oldscratch root/newscratch root/scratch root/data root/var/data root/auto root/late root/slow root/store
		for l in lower upper old new; do
			mkdir root/l/$l
		done
		echo scratch >root/l/lower/f
		echo first >root/l/old/f
		mount --bind root/l/lower root/oldscratch
		mount --bind root/l/upper root/newscratch
		# A source that is away, and one that does not answer.
		mkdir -p root/root/.ssh
		cat >root/root/.ssh/config <<-E
			Host host
			ProxyCommand false
			Host slow
			ProxyCommand sh -c "touch /run/asked; until [ -e /run/enough ]; do sleep 0.1; done"
		E
		cat >root/etc/fstab <<-E
			`+strings.ReplaceAll(fstab, "\n", "\n\t\t\t")+`
			/l/old /store  none  bind,x-systemd.automount  0 0
			first  /auto  migratefs       lowerdir=/store,upperdir=/l/new,mode=overlay,x-systemd.automount  0 0
			late  /late  fuse.migratefs  noauto,lowerdir=/l/lower:/l/old  0 0
			slow  /slow  migratefs       lowerdir=slow:/data,_netdev,nofail  0 0
		E
		printf '[Service]\nType=oneshot\nExecStart=/bin/cat /auto/f\n' >root/etc/systemd/system/other.service
		printf '[Service]\nType=oneshot\nPrivateTmp=yes\nProtectSystem=strict\nExecStart=/bin/cat /auto/f\n' >root/etc/systemd/system/apart.service`)

	b.sh(`while [ ! -e /run/asked ]; do sleep 0.1; done
		# It did not have its answer when the boot was over.
		touch /run/enough
		while [ "$(systemctl is-active slow.mount)" = activating ]; do sleep 0.1; done
		[ "$(systemctl show --value -p ActiveEnterTimestampMonotonic multi-user.target)" -lt "$(systemctl show --value -p InactiveEnterTimestampMonotonic slow.mount)" ]
		systemctl show -p Result slow.mount
		journalctl -u slow.mount -o cat | grep -o "migratefs: remote layer slow:.data"
		systemd-analyze --man=no verify /run/systemd/generator/*mount
		cat /scratch/f
		systemctl show --value -p RequiresMountsFor scratch.mount | tr ' ' '\n' | sort | xargs
		systemctl is-active scratch.mount auto.automount auto.mount data.automount late.mount || :`, `Result=exit-code
migratefs: remote layer slow:/data
scratch
/ /newscratch /oldscratch
active
active
inactive
active
inactive
`)

	// Another unit looks first, and that brings the mount's lower, too; and one with a mount namespace of its own.
	b.sh(`systemctl start apart
		systemctl start other
		journalctl -u apart -u other -o cat -t cat
		findmnt -n -t fuse.migratefs -o SOURCE,FSTYPE /auto
		echo second >/auto/g
		systemctl stop auto.mount 2>/dev/null
		cat /l/new/g
		pidof migratefs | wc -w
		systemctl is-active auto.automount
		cat /auto/g
		systemctl stop auto.automount
		findmnt -n /auto || echo "all is gone"`, `first
first
first  fuse.migratefs
second
1
active
second
all is gone
`)

	// A source that is away is an error for who looks, each time.
	b.sh(`for i in 1 2; do ls /data 2>&1 || :; done
		systemctl is-active data.automount
		journalctl -u data.mount -o cat | grep -o "migratefs: remote layer user@host:/data: " | sort -u
		mount /late 2>&1 | cut -c1-28
		cat /late/f
		umount /late /scratch
		pidof migratefs || echo "no daemon"`, `ls: cannot open directory '/data': No such device
ls: cannot open directory '/data': No such device
active
migratefs: remote layer user@host:/data: 
migratefs: /late is mounted 
scratch
no daemon
`)
}
