package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

const version = "1.2.3"

// packaged builds deb and RPM of the program that the tests have, and returns the
// directory they are in.
func packaged(t *testing.T) (dist string) {
	t.Helper()
	dist = testbed.TempDir(t)
	program := testbed.Build(t)
	completions := filepath.Join(dist, "completions")
	if err := os.Mkdir(completions, 0o755); err != nil {
		t.Fatal(err)
	}
	for shell, name := range map[string]string{"bash": "migratefs", "zsh": "_migratefs", "fish": "migratefs.fish"} {
		out, err := exec.Command(program, "completion", shell).Output()
		if err != nil || !strings.Contains(string(out), "migratefs") {
			t.Fatalf("completion %s: %v", shell, err)
		}
		if err := os.WriteFile(filepath.Join(completions, name), out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := `
		umask 022
		export SOURCE_DATE_EPOCH=1700000000 BINARY COMPLETIONS DEB_COMPRESSION=none RPM_PAYLOAD=w1.gzdio
		packaging/deb.sh $V $ARCH $D/deb $D
		# The spec wants the source for documents alone, where the program is built already.
		mkdir $D/migratefs-$V
		cp -r LICENSE README.md CHANGELOG.md docs packaging $D/migratefs-$V/
		tar -C $D -czf $D/migratefs-$V.tar.gz migratefs-$V
		make -s install DESTDIR=$D/tree BINARY=$BINARY
		tar -C $D/tree -czf $D/migratefs-$V-linux-$ARCH.tar.gz etc usr
		packaging/rpm.sh $V $ARCH $D/rpm $D
		rm -r $D/deb $D/rpm $D/tree $D/migratefs-$V`
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = testbed.ModuleDir()
	cmd.Env = append(os.Environ(), "V="+version, "ARCH="+runtime.GOARCH, "D="+dist, "BINARY="+program, "COMPLETIONS="+completions)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dist
}

// Both packages, in a root that is this host's with an upper of memory over it: what
// they leave behind is what that holds in the end.
func TestPackages(t *testing.T) {
	testbed.NeedFUSE(t)
	dist := packaged(t)
	t.Run("metadata", func(t *testing.T) { metadata(t, dist) })
	for _, kind := range []struct{ name, install, upgrade, remove string }{
		{"deb", "dpkg --force-depends -i /p/*.deb", "dpkg --force-depends -i /p/*.deb", "dpkg --purge migratefs"},
		{"rpm", "rpm --force-debian -i --nodeps /p/*.rpm", "rpm --force-debian -U --nodeps --force /p/*.rpm", "rpm --force-debian -e migratefs"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			dir := testbed.TempDir(t)
			cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-euc", `
				mount -t tmpfs tmpfs .
				mkdir upper work root layers layers/old layers/new
				mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
				mkdir -p root/p root/l root/a root/b root/etc/systemd/system/multi-user.target.wants
				mount --bind "$D" root/p
				mount --bind layers root/l
				mount -t proc proc root/proc
				mount --rbind /dev root/dev
				mount -t tmpfs run root/run
				echo old >layers/old/f
				cat >>root/etc/fstab <<-E
					one /a fuse.migratefs noauto,nofail,_netdev,x-systemd.automount,lowerdir=/l/old,upperdir=/l/new 0 0
					two /b migratefs      noauto,lowerdir=/l/old,upperdir=/l/new 0 0
				E
				cat >root/script <<-'E'
					exec 2>&1
					`+kind.install+` >/run/log || { cat /run/log; exit 1; }
					migratefs version | grep -o "migratefs devel"
					mount /a 2>&1 | cut -c1-30
					echo more >>/a/f
					`+kind.upgrade+` >/run/log || { cat /run/log; exit 1; }
					xargs </a/f
					umount /a
					mount /b 2>&1 | cut -c1-30
					echo again >>/b/f
					grep -c " /b fuse.migratefs " /proc/mounts
					umount /b
					ls /l/old
					xargs </l/new/f
					systemd-analyze --man=no verify migratefs@b.service
					systemd-analyze security --offline=yes --threshold=70 migratefs@b.service >/run/log || { cat /run/log; exit 1; }
					bash -n /usr/share/bash-completion/completions/migratefs
					ln -s /usr/lib/systemd/system/migratefs@.service /etc/systemd/system/multi-user.target.wants/migratefs@b.service
					`+kind.remove+` >/run/log || { cat /run/log; exit 1; }
					echo removed
				E
				chroot root sh -e /script
				cd upper
				find . -type f -o -type l -o -type c | grep -v -e '^\./var/\(lib/\(dpkg\|rpm\|systemd\)\|log\|cache\)/' -e '^\./root/\.rpmdb' -e '^\./\(script\|etc/fstab\)$' || echo "nothing is left"
				find . -name '*migratefs*'`)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "D="+dist)
			out, err := cmd.CombinedOutput()
			const want = `migratefs devel
migratefs: /a is mounted, mode
old more
migratefs: /b is mounted, mode
1
old more again
removed
nothing is left
`
			if err != nil || string(out) != want {
				t.Errorf("%v, and\n%s\nwant\n%s", err, out, want)
			}
		})
	}
}

// metadata looks at what the packages ask for, and that they do nothing to mounts that
// are there.
func metadata(t *testing.T, dist string) {
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	rpms, _ := filepath.Glob(dist + "/*.rpm")
	debs, _ := filepath.Glob(dist + "/*.deb")
	if len(rpms) != 1 || len(debs) != 1 {
		t.Fatalf("%q, %q", rpms, debs)
	}
	requires := "\n" + run("rpm", "-qp", "--requires", rpms[0])
	for _, r := range []string{"fuse3", "openssh-clients"} {
		if !strings.Contains(requires, "\n"+r+"\n") {
			t.Errorf("the RPM does not require %s:%s", r, requires)
		}
	}
	if depends := run("dpkg-deb", "-f", debs[0], "Depends"); depends != "fuse3, openssh-client\n" {
		t.Errorf("the deb depends on %q", depends)
	}
	scripts := run("rpm", "-qp", "--scripts", rpms[0]) + run("dpkg-deb", "-I", debs[0], "prerm")
	for _, word := range []string{"restart", "systemctl", "umount", "stop"} {
		if strings.Contains(scripts, word) {
			t.Errorf("a scriptlet has %q:\n%s", word, scripts)
		}
	}
	for _, name := range []string{"/usr/sbin/mount.fuse.migratefs", "/usr/sbin/mount.migratefs", "/usr/share/man/man5/migratefs.5.gz", "/usr/lib/systemd/system/migratefs@.service"} {
		if !strings.Contains(run("rpm", "-qpl", rpms[0]), name+"\n") || !strings.Contains(run("dpkg-deb", "-c", debs[0]), "."+name) {
			t.Errorf("%s is not in both packages", name)
		}
	}
	if conf := run("rpm", "-qpc", rpms[0]) + run("dpkg-deb", "-I", debs[0], "conffiles"); conf != "/etc/sysconfig/migratefs\n/etc/default/migratefs\n" {
		t.Errorf("configuration files: %q", conf)
	}
}
