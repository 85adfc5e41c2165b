#!/usr/bin/env bash
# Installs the programs that the tests and the demo drive, on Debian and Fedora.
# Prints what it installs, nothing if all is there; never removes or upgrades.
#
#   tests/testbed/install.sh [--demo|--bench]   --demo: only what the demo needs
#                                               --bench: what make bench measures against, too
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

die() { echo "install.sh: $*" >&2; exit 1; }

# program (or =file) | Debian package | Fedora package
demo='
go          | golang-go      | golang
sshd        | openssh-server | openssh-server
ssh         | openssh-client | openssh-clients
=sftp-server| openssh-sftp-server | openssh-server
fusermount3 | fuse3          | fuse3
ip          | iproute2       | iproute
unshare     | util-linux     | util-linux
git         | git            | git-core
'
tests="$demo
setfattr    | attr           | attr
setfacl     | acl            | acl
setcap      | libcap2-bin    | libcap
mkfs.ext4   | e2fsprogs      | e2fsprogs
mkfs.xfs    | xfsprogs       | xfsprogs
mkfs.btrfs  | btrfs-progs    | btrfs-progs
gcc         | gcc            | gcc
=stdlib.h   | libc6-dev      | glibc-devel
strace      | strace         | strace
rsync       | rsync          | rsync
tar         | tar            | tar
shellcheck  | shellcheck     | ShellCheck
mandoc      | mandoc         | mandoc
dpkg-deb    | dpkg           | dpkg
rpmbuild    | rpm            | rpm-build
rpmlint     | rpmlint        | rpmlint
systemd-analyze | systemd    | systemd
setpriv     | util-linux     | util-linux
runc        | runc           | runc
debootstrap | debootstrap    | debootstrap
buildah     | buildah        | buildah
podman      | podman         | podman
chromium    | chromium       | chromium
curl        | curl           | curl
"

bench="$tests
fuse-overlayfs | fuse-overlayfs | fuse-overlayfs
mergerfs    | mergerfs       | mergerfs
sshfs       | sshfs          | fuse-sshfs
rclone      | rclone         | rclone
find        | findutils      | findutils
"

want=$tests
case ${1-} in
--demo) want=$demo ;;
--bench) want=$bench ;;
esac

# there NAME: whether the program, or the file for "=NAME", is installed.
there() {
	case $1 in
	=sftp-server) [ -x /usr/lib/openssh/sftp-server ] || [ -x /usr/libexec/openssh/sftp-server ] ;;
	=stdlib.h) [ -e /usr/include/stdlib.h ] ;;
	chromium) command -v chromium >/dev/null || command -v chromium-browser >/dev/null ;; # Fedora's is called so
	*) command -v "$1" >/dev/null ;;
	esac
}

if command -v apt-get >/dev/null; then
	column=2
elif command -v dnf >/dev/null; then
	column=3
else
	die "neither apt-get nor dnf is here: install the packages named in tests/testbed/install.sh by hand"
fi

missing=()
while IFS='|' read -r name deb rpm; do
	name=${name// /}
	[ -n "$name" ] || continue
	there "$name" && continue
	package=$([ $column = 2 ] && echo "$deb" || echo "$rpm")
	missing+=("${package// /}")
done <<<"$want"

if [ ${#missing[@]} -gt 0 ]; then
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	[ "$(id -u)" = 0 ] || die "missing: ${missing[*]}: run this as root, or install them"
	echo "installing ${missing[*]}"
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	export DEBIAN_FRONTEND=noninteractive
	if [ $column = 2 ]; then
		# A service that starts with its package is not wanted: the tests
		# have servers of their own.
		install=(apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}")
		[ -e /usr/sbin/policy-rc.d ] || {
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
			chmod 755 /usr/sbin/policy-rc.d
			trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
		}
		"${install[@]}" >"$log" 2>&1 ||
			{ apt-get -q -y update && "${install[@]}"; } >"$log" 2>&1 ||
			{ tail -n 20 "$log" >&2; die "apt-get could not install ${missing[*]}"; }
	else
		dnf -q -y install "${missing[@]}" >"$log" 2>&1 ||
			{ tail -n 20 "$log" >&2; die "dnf could not install ${missing[*]}"; }
	fi
fi

# A Go from 1.21 on fetches the version that go.mod names by itself.
go mod download || die "$(go version) cannot build this: install the Go that go.mod names, or a newer one, and put it in PATH"

criu=$(./criu.sh)
[ -x "$criu" ] || die "tests/testbed/criu.sh named no CRIU"
[ "$want" != "$tests" ] || ./bareroot.sh >/dev/null
