package traps

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// unprivileged runs a script in a mount namespace of its own where everybody may
// open /dev/fuse, in a directory that belongs to user and holds two lowers. $run is
// what runs a command as user.
func unprivileged(t *testing.T, script string) string {
	t.Helper()
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	dir := testbed.TempDir(t)
	must(t, os.Chmod(dir, 0o755))
	must(t, unix.Mknod(filepath.Join(dir, "fuse"), unix.S_IFCHR, int(unix.Mkdev(10, 229))))
	must(t, os.Chmod(filepath.Join(dir, "fuse"), 0o666))
	binary, err := os.ReadFile(testbed.Build(t))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "migratefs"), binary, 0o755))
	home := filepath.Join(dir, "home")
	must(t, os.Mkdir(home, 0o755))
	must(t, os.Chown(home, 1000, 1001))
	cmd := exec.Command("unshare", "-m", "sh", "-c", testbed.LetGo+`mount --bind ../fuse /dev/fuse || exit
		run="setpriv --reuid 1000 --regid 1001 --clear-groups"
		$run sh -c '
			mkdir -p l1/d l1/gone l2/e u k w kw m m2
			echo lower >l1/d/f; echo x >l1/gone/f; echo two >l2/e/g; echo del >l1/del'
		`+script)
	cmd.Dir = home
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	return string(out)
}

// changeAll changes a little of everything in m.
const changeAll = `cd m; echo more >>d/f; rm del; rm -r gone; mkdir gone; echo new >gone/n; mv e/g e/h; mkdir mine; mv mine mine2
	perl -e "rename(qw(d d2)) or print qq(\$!\n)"
	perl -e "\$^F = 9; sysopen(F, \"d\", 0x410002, 0644) and syswrite(F, \"made\") and exec(qw(ln -L), \"/proc/\$\$/fd/\" . fileno(F), \"d/t\"); print \$!"
	setfattr -n user.a -v b d/f; ln d/f d/f2; ln -s x d/l; cd ..
	find m -printf "%P %y %m %U:%G %s %n\n" | grep -v " d " | sort >ours; find m -type f -exec md5sum {} + | sort >>ours`

const asUser = `migratefs() { ../migratefs "$@"; }; `

// In a user namespace, what root in there mounts is an overlayfs upper that the
// kernel's overlayfs, mounted in there with userxattr, shows the same.
func TestUserNamespace(t *testing.T) {
	for _, option := range []string{",userxattr", ",mode=overlay"} {
		out := unprivileged(t, `exec $run unshare -Urm sh -c '`+asUser+`
			migratefs -o lowerdir=l1:l2,upperdir=u,workdir=w`+option+` m || exit
			`+changeAll+`
			migratefs umount m
			mount -t overlay overlay -o lowerdir=l1:l2,upperdir=u,workdir=kw,userxattr m || exit
			find m -printf "%P %y %m %U:%G %s %n\n" | grep -v " d " | sort >kernel; find m -type f -exec md5sum {} + | sort >>kernel
			diff ours kernel && echo the same
			rm m/d/l; echo kernel >m/e/h; rm -r m/gone; umount m
			migratefs -o lowerdir=l1:l2,upperdir=u,workdir=w`+option+` m 2>/dev/null
			cat m/e/h; ls m m/d; migratefs umount m
			stat -c "%F" u/del; cat l1/d/f l1/gone/f l1/del l2/e/g'`)
		_, out, _ = strings.Cut(out, "never modified\n")
		mustBe(t, out, `Invalid cross-device link
the same
kernel
m:
d
e
mine2

m/d:
f
f2
t
character special file
lower
x
del
two
`)
	}
}

// A user mounts by fusermount3: nobody else gets in, root included.
func TestPlainUser(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		out := unprivileged(t, `$run ../migratefs -o mode=`+mode+`,lowerdir=l1:l2,upperdir=u m || exit
			$run sh -c 'cd m; cat d/f; echo more >>d/f; cat d/f; mkdir new; rm del; mv e/g new/; ls; stat -c %u:%g new new/g'
			ls m 2>&1; setpriv --reuid 1002 --regid 1002 --clear-groups ls m 2>&1
			$run ../migratefs umount m; cat u/d/f`)
		_, out, _ = strings.Cut(out, "\n")
		mustBe(t, out, `lower
lower
more
d
e
gone
new
1000:1001
1000:1001
ls: cannot access 'm': Permission denied
ls: cannot access 'm': Permission denied
lower
more
`)
	}
}
