package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// The versions that packages are made of: an older and a newer one.
var versions = []string{"1.2.3", "1.2.4"}

// packaged builds deb and RPM of the program that the tests have, in two versions, and
// an RPM "world" that provides what Fedora has; it returns the directory they are in.
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
		# As it is released.
		strip -o $D/migratefs $BINARY
		make -s install DESTDIR=$D/tree BINARY=$D/migratefs
		tar -C $D/tree -cf - etc usr | gzip -1 >$D/program
		for V in $VERSIONS; do
			packaging/deb.sh $V $ARCH $D/deb $D
			# The spec wants the source for documents alone, where the program is built already.
			mkdir $D/migratefs-$V
			cp -r LICENSE README.md CHANGELOG.md docs packaging $D/migratefs-$V/
			tar -C $D -czf $D/migratefs-$V.tar.gz migratefs-$V
			cp $D/program $D/migratefs-$V-linux-$ARCH.tar.gz
			packaging/rpm.sh $V $ARCH $D/rpm $D
			rm -r $D/deb $D/rpm $D/migratefs-$V
		done
		rm -r $D/tree
		mkdir $D/world
		cat >$D/world.spec <<-E
			Name: world
			Version: 1
			Release: 1
			Summary: What Fedora has
			License: none
			BuildArch: noarch
			Provides: fuse3, openssh-clients, /bin/sh
			%description
			%files
		E
		rpmbuild -bb --define "_topdir $D/world" --define "_rpmdir $D/world" $D/world.spec >/dev/null 2>&1`
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = testbed.ModuleDir()
	cmd.Env = append(os.Environ(), "VERSIONS="+strings.Join(versions, " "), "ARCH="+runtime.GOARCH, "D="+dist, "BINARY="+program, "COMPLETIONS="+completions)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dist
}

// Both packages, each in a bare root, as its distribution installs it and with all that
// it depends on: mounts are made by lines of fstab, upgraded under, and ended; the
// package goes while one of them is there; and nothing is left.
func TestPackages(t *testing.T) {
	testbed.NeedFUSE(t)
	dist := packaged(t)
	t.Run("metadata", func(t *testing.T) { metadata(t, dist) })
	t.Run("rpmlint", func(t *testing.T) { lintRPM(t, dist) })
	for _, kind := range []struct{ name, prepare, install, version, remove string }{
		{"deb", `
			mkdir root/p
			mount --bind "$D" root/p`,
			`chroot root dpkg -i /p/$(cd "$D"; echo migratefs_${V}_*.deb)`,
			`chroot root dpkg-query -W -f '${Version}\n' migratefs`,
			`chroot root dpkg --purge migratefs`},
		{"rpm", `
			# Directories that every Fedora has.
			mkdir -p root/etc/sysconfig root/usr/share/{fish/vendor_completions.d,licenses,zsh/site-functions}
			root=(--root "$PWD/root" --dbpath /var/lib/rpm)
			rpm "${root[@]}" --initdb
			root+=(--force-debian)
			# It depends on what it uses, and on nothing else.
			V=1.2.3; rpm "${root[@]}" -i "$D"/migratefs-$V-*.rpm 2>&1 | grep -o '[^[:space:]]* is needed' | sort
			rpm "${root[@]}" -i --ignorearch "$D"/world/noarch/world-*.rpm`,
			`rpm "${root[@]}" -U "$D"/migratefs-$V-*.rpm`,
			`rpm "${root[@]}" -q --qf '%{version}\n' migratefs`,
			`rpm "${root[@]}" -e migratefs`},
	} {
		t.Run(kind.name, func(t *testing.T) {
			out, err := inRoot(t, `
				exec 2>&1
				quietly() { "$@" >log 2>&1 || { cat log; exit 1; }; }
				in_root() { chroot root "$@"; }
				install() { V=$1; quietly eval '`+kind.install+`'; `+kind.version+`; }
				remove() { quietly eval '`+kind.remove+`'; }
				# A file that the package did not bring is what it was, to the nanosecond.
				everything() {
					find root -xdev \( -path root/var/lib/dpkg -o -path root/var/lib/apt -o -path root/var/lib/rpm -o -path root/var/cache -o -path root/var/log \) -prune \
						-o -type d -printf '%p %m %U:%G\n' -o -printf '%p %y %m %U:%G %s %T@ %l\n' | sort
				}
				# What tells one daemon, and one mount, from another.
				pid_of() { in_root pidof -s migratefs; }
				mount_of() { grep " $1 fuse.migratefs " /proc/self/mounts; grep " $1 " /proc/self/mountinfo | cut -d " " -f 1; }

				cat >>root/etc/fstab <<-E
					one /a fuse.migratefs nofail,_netdev,x-systemd.automount,lowerdir=/l/old,upperdir=/l/new 0 0
					two,b /b migratefs      noauto,lowerdir=/l/old,upperdir=/l/new 0 0
				E
				mkdir root/a root/b root/l/old root/l/new root/etc/systemd/system/multi-user.target.wants -p
				echo old >root/l/old/f
				`+kind.prepare+`
				everything >before

				install 1.2.3
				in_root migratefs version | grep -o "migratefs devel"
				in_root mount -a 2>&1 | cut -c1-30
				in_root mount -a # and what is mounted is not mounted again
				in_root findmnt -no SOURCE,FSTYPE /a
				exec 9>>root/a/f
				echo more >&9
				daemon=$(pid_of) mounted=$(mount_of "$PWD/root/a")

				install 1.2.4
				[ "$daemon" = "$(pid_of)" ] || echo "the daemon is another one"
				[ "$mounted" = "$(mount_of "$PWD/root/a")" ] || echo "the mount is another one"
				readlink /proc/$daemon/exe | grep -o "migratefs (deleted)"
				echo upgraded >&9
				exec 9>&-
				xargs <root/a/f
				in_root umount /a
				[ ! -e /proc/$daemon ] || echo "umount came back before the daemon had ended"

				in_root mount -t migratefs /b 2>&1 | cut -c1-30
				in_root findmnt -no SOURCE /b
				in_root sh -c "echo again >>/b/f; grep -c ' /b fuse.migratefs ' /proc/mounts"
				in_root ls /l/old
				in_root systemd-analyze --man=no verify migratefs@b.service
				quietly in_root systemd-analyze security --offline=yes --threshold=70 migratefs@b.service
				in_root bash -n /usr/share/bash-completion/completions/migratefs
				in_root ln -s /usr/lib/systemd/system/migratefs@.service /etc/systemd/system/multi-user.target.wants/migratefs@b.service
				echo MOUNTPOINT=/b >root/etc/migratefs/b.conf

				remove
				echo removed
				xargs <root/b/f
				daemon=$(pid_of)
				in_root umount /b
				while [ -e /proc/$daemon ]; do sleep 0.05; done
				xargs <root/l/new/f
				everything | diff before - | grep "^[<>]" | cut -d " " -f 1-5
				find root -xdev -path root/var/log -prune -o -name "*migratefs*" -print`, "D="+dist)
			needed := ""
			if kind.name == "rpm" {
				needed = "/bin/sh is needed\nfuse3 is needed\nopenssh-clients is needed\n"
			}
			want := needed + `1.2.3
migratefs devel
migratefs: /a is mounted, mode
one    fuse.migratefs
1.2.4
migratefs (deleted)
old more upgraded
migratefs: /b is mounted, mode
two,b
1
removed
old more upgraded again
old more upgraded again
> root/etc/migratefs 755 0:0
> root/etc/migratefs/b.conf f 644 0:0
root/etc/migratefs
`
			if err != nil || out != want {
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
	rpms, _ := filepath.Glob(dist + "/migratefs-" + versions[0] + "-*.rpm")
	debs, _ := filepath.Glob(dist + "/migratefs_" + versions[0] + "_*.deb")
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

// lintRPM has rpmlint look at the packages, binary and source, and the spec: it finds
// nothing but what packaging/rpmlint.toml excuses, and that has no excuse for what is
// not there.
func lintRPM(t *testing.T, dist string) {
	script := `
		mkdir -p $D/source/SOURCES
		cp $D/migratefs-$V.tar.gz $D/source/SOURCES/
		sed "s/0\.0\.0/$V/" packaging/migratefs.spec >$D/source/migratefs.spec
		rpmbuild -bs --nodeps --define "_topdir $D/source" $D/source/migratefs.spec >&2
		rpmlint "$@" $D/migratefs-$V-*.rpm $D/source/SRPMS/*.rpm $D/source/migratefs.spec || :`
	lint := func(args ...string) string {
		cmd := exec.Command("bash", append([]string{"-euc", script, "bash"}, args...)...)
		cmd.Dir = testbed.ModuleDir()
		cmd.Env = append(os.Environ(), "D="+dist, "V="+versions[0])
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "2 packages and 1 specfiles checked") {
			t.Fatalf("%v\n%s%s", err, said.String(), out)
		}
		return string(out)
	}
	if out := lint("-c", "packaging/rpmlint.toml"); !strings.Contains(out, "; 0 errors, 0 warnings, ") {
		t.Error(out)
	}
	conf, err := os.ReadFile(filepath.Join(testbed.ModuleDir(), "packaging", "rpmlint.toml"))
	if err != nil {
		t.Fatal(err)
	}
	all := lint()
	excuses := regexp.MustCompile(`(?m)^ *"(.*)",$`).FindAllStringSubmatch(string(conf), -1)
	for _, e := range excuses {
		if !regexp.MustCompile(e[1]).MatchString(all) {
			t.Errorf("rpmlint.toml excuses %q, which rpmlint does not say:\n%s", e[1], all)
		}
	}
	if len(excuses) == 0 {
		t.Error("rpmlint.toml excuses nothing: is it read?")
	}
}
