package packages

import (
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Somebody who is not root mounts with fusermount3, sees and changes the mount, and
// ends it; what keeps them from it is said in fusermount3's words. Nobody else but root
// gets in, is told anything, or ends it, not even where the socket is open to all.
func TestUser(t *testing.T) {
	testbed.NeedFUSE(t)
	out, err := inRoot(t, `
		exec 2>&1
		install "$BINARY" root/usr/bin/migratefs
		cat >root/script <<-'E'
			export PATH=/usr/sbin:/usr/bin
			as() {
				local u=$1; shift
				setpriv --reuid=$u --regid=$u --init-groups env -C /home/$u HOME=/home/$u XDG_RUNTIME_DIR=/run/user/$(id -u $u) "$@" 2>&1
				echo "  $u: $?"
			}
			for u in alice bob; do
				useradd -m $u
				install -d -m 700 -o $u /run/user/$(id -u $u)
			done
			as alice sh -c "mkdir lower upper mnt; echo content >lower/private-file"
			as alice migratefs -o lowerdir=lower,upperdir=upper,mode=overlay /mnt
			as alice migratefs -o lowerdir=lower,upperdir=upper,mode=overlay,allow_other mnt
			as alice migratefs -o lowerdir=lower,upperdir=upper,mode=overlay mnt
			as alice sh -c "echo more >>mnt/private-file; cat mnt/private-file"
			as alice migratefs status | grep -v -e daemon -e requests -e open | sed "s/: .*//"
			as alice migratefs set mnt log_level=debug | tail -n 2
			as alice migratefs top -n 1 --interval 100ms mnt | head -n 1 | cut -c 1-3
			as alice migratefs bugreport -o bug mnt | tail -n 1
			grep -i -e private-file -e alice -e more /home/alice/bug
			as alice migratefs report -o page mnt
			as alice grep -o "</html>" page

			dir=/run/user/$(id -u alice)
			chmod 777 $dir $dir/migratefs $dir/migratefs/control $dir/migratefs/control/*.sock /home/alice
			as bob migratefs status
			as bob migratefs set /home/alice/mnt log_level=info
			as bob ls /home/alice/mnt
			as bob migratefs umount /home/alice/mnt
			migratefs status | head -n 1
			migratefs set /home/alice/mnt | tail -n 1

			as alice sh -c "exec 4<mnt/private-file; migratefs umount mnt"
			as alice migratefs umount mnt
			as alice ls -A mnt
			rm /dev/fuse
			as alice migratefs -o lowerdir=lower mnt
			migratefs -o lowerdir=/home/alice/lower /mnt
			echo "  root: $?"
		E
		chroot root bash /script`, "BINARY="+testbed.Build(t))
	want := `  alice: 0
migratefs: mount on "/mnt": /usr/bin/fusermount3: user has no write access to mountpoint /mnt
  alice: 32
migratefs: mount on "/home/alice/mnt": /usr/bin/fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf
  alice: 32
migratefs: /home/alice/mnt is mounted, mode=overlay: changes go to upper, lowers are never modified
  alice: 0
content
more
  alice: 0
/home/alice/mnt  overlay
  upper      /home/alice/upper
  lower      /home/alice/lower
  copied up  1 file, 8 B
  alice
trace=off
  alice: 0
mnt
  alice: 0
  alice: 0
</html>
  alice: 0
/home/alice/mnt  is user 1000's: only they and root may ask its daemon
migratefs: "/home/alice/mnt" is user 1000's: only they and root may ask its daemon
  bob: 3
migratefs: "/home/alice/mnt" is user 1000's: only they and root may ask its daemon
  bob: 1
ls: cannot access '/home/alice/mnt': Permission denied
  bob: 2
migratefs: "/home/alice/mnt" is user 1000's: only they and root may unmount it
  bob: 1
/home/alice/mnt  overlay
trace=off
migratefs: "mnt" is in use: end what uses it (fuser -vm "/home/alice/mnt" lists that), or give --lazy
  alice: 1
  alice: 0
  alice: 0
migratefs: mount on "/home/alice/mnt": /dev/fuse: no such file or directory: load the module (modprobe fuse); in a container, give it the device: --device /dev/fuse
  alice: 32
migratefs: mount on "/mnt": /dev/fuse: no such file or directory: load the module (modprobe fuse); in a container, give it the device: --device /dev/fuse
  root: 32
`
	if err != nil || out != want {
		t.Errorf("%v, and\n%s\nwant\n%s", err, out, want)
	}
}
