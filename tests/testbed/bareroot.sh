#!/bin/sh
# Makes bare roots of Debian 12, for the tests that install packages, boot systemd and
# build the container image.
#
#   tests/testbed/bareroot.sh [DIR]    default /var/cache/migratefs-testbed/bare
#
# Afterwards DIR/minimal is a root as images of Debian have it, and DIR/more is what it
# takes besides for a service that mounts, as the upper of an overlay over it. Prints
# DIR as the only line on standard output. It takes a minute or two, and when all is
# there nothing.
set -eu

dir=${1:-/var/cache/migratefs-testbed/bare}
packages='fuse3 openssh-client systemd make'
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "bareroot.sh: $*" >&2; }
die() { say "$@"; exit 1; }

[ "$(id -u)" = 0 ] || die "a root is made by root: run this as root"
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ "$(cat "$dir/made" 2>/dev/null)" = "$packages" ]; then
	echo "$dir"
	exit 0
fi

# Debian comes from where this host gets it.
uri=
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || die "$keyring is missing: install debian-archive-keyring"
if command -v apt-get >/dev/null; then
	# shellcheck disable=SC2016
	uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' |
		awk '$1 == "bookworm" && $2 == "main" { print $3; exit }')
fi
uri=${uri:-http://deb.debian.org/debian}

say "fetching Debian 12 into $dir"
rm -rf "$dir/made" "$dir/minimal" "$dir/more" "$dir/work" "$dir/images"
debootstrap --variant=minbase --keyring="$keyring" bookworm "$dir/minimal" "$uri" >"$dir/debootstrap.log" 2>&1 9>&- ||
	{ tail -n 20 "$dir/debootstrap.log" >&2; die "debootstrap could not make $dir/minimal"; }
rm -rf "$dir/minimal"/var/cache/apt/*.bin "$dir/minimal"/var/cache/apt/archives/*.deb
mkdir "$dir/more" "$dir/work"
# What the packages' scripts run sees this root, and these mounts and processes, alone.
unshare -m -p -f --kill-child --propagation private sh -eu -s "$dir" "$packages" >"$dir/apt.log" 2>&1 9>&- <<'E' ||
	mkdir -p "$1/root"
	mount -t overlay overlay -o "lowerdir=$1/minimal,upperdir=$1/more,workdir=$1/work" "$1/root"
	mount -t proc proc "$1/root/proc"
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive chroot "$1/root" apt-get -q -y install --no-install-recommends $2
	rm -rf "$1"/root/var/cache/apt/*.bin "$1"/root/var/cache/apt/archives/*.deb
E
	{ tail -n 20 "$dir/apt.log" >&2; die "apt-get could not install $packages in $dir"; }
rm -rf "$dir/work"
rmdir "$dir/root"
echo "$packages" >"$dir/made"
echo "$dir"
