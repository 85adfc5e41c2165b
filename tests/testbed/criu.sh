#!/bin/sh
# Installs a CRIU that works on this kernel, for the tests and the demo.
#
#   tests/testbed/criu.sh [DIR]        default /var/cache/migratefs-testbed/criu
#
# Afterwards DIR/criu is an executable that runs it, and its path is the only
# line on standard output. Running it again costs a `criu check`. A criu in PATH
# that passes its own check is used as it is. Debian 12's 3.17 does not (it
# fails on the vDSO of newer kernels), so there the one of Debian 13 is unpacked
# into DIR beside its own C library; nothing else on the system changes.
set -eu

dir=${1:-/var/cache/migratefs-testbed/criu}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "criu.sh: $*" >&2; }
die() { say "$@"; exit 1; }

# works CRIU: whether it can dump and restore on this kernel.
works() { [ -x "$1" ] && "$1" check >/dev/null 2>&1; }

# wrap COMMAND...: makes DIR/criu run COMMAND with the caller's arguments.
wrap() {
	printf '#!/bin/sh\nexec %s "$@"\n' "$*" >"$dir/criu.new"
	chmod 755 "$dir/criu.new"
	mv -f "$dir/criu.new" "$dir/criu"
}

done_if_works() {
	works "$dir/criu" || return 0
	say "$("$dir/criu" --version | head -n 1) works: $dir/criu"
	echo "$dir/criu"
	exit 0
}

# unpack_trixie: Debian 13's criu and the libraries it needs, into DIR/root.
unpack_trixie() {
	[ "$(uname -m)" = x86_64 ] || die "only x86_64 is prepared here; put a working criu in PATH"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] || die "$keyring is missing: apt-get install debian-archive-keyring"
	# Debian comes from where this host gets it.
	# shellcheck disable=SC2016
	uri=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' |
		awk '$1 == "bookworm" && $2 == "main" { print $3; exit }')
	[ -n "$uri" ] || die "apt knows no source for bookworm main; put a working criu in PATH"

	tmp=$(mktemp -d "$dir/unpack.XXXXXX")
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 1' INT TERM HUP
	mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial" "$tmp/debs" "$tmp/root"
	chmod 755 "$tmp"
	echo "deb [signed-by=$keyring] $uri trixie main" >"$tmp/trixie.list"
	# The sandbox user of apt has no right to our directory: fetch as ourselves.
	cat >"$tmp/apt.conf" <<-CONF
		Dir::Etc::sourcelist "$tmp/trixie.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State::lists "$tmp/lists";
		Dir::Cache "$tmp/cache";
		APT::Sandbox::User "root";
		APT::Default-Release "";
		Acquire::Languages "none";
		Acquire::Retries "3";
	CONF
	say "fetching criu of Debian 13 into $dir"
	APT_CONFIG="$tmp/apt.conf" apt-get -qq update >&2 || die "the list of Debian 13 packages did not arrive"
	(cd "$tmp/debs" && APT_CONFIG="$tmp/apt.conf" apt-get -qq download criu/trixie \
		libc6/trixie libbsd0/trixie libgnutls30t64/trixie libnet1/trixie libnftables1/trixie \
		libnl-3-200/trixie libprotobuf-c1/trixie libuuid1/trixie libcompel1/trixie libmd0/trixie \
		libp11-kit0/trixie libidn2-0/trixie libunistring5/trixie libtasn1-6/trixie \
		libnettle8t64/trixie libhogweed6t64/trixie libgmp10/trixie libmnl0/trixie libnftnl11/trixie \
		libxtables12/trixie libjansson4/trixie libffi8/trixie libedit2/trixie libtinfo6/trixie >&2) ||
		die "the packages of Debian 13 did not arrive"
	for deb in "$tmp"/debs/*.deb; do
		dpkg -x "$deb" "$tmp/root"
	done
	rm -rf "$dir/root"
	mv "$tmp/root" "$dir/root"
	rm -rf "$tmp"
	wrap "'$dir/root/usr/lib64/ld-linux-x86-64.so.2'" --library-path \
		"'$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu'" "'$dir/root/usr/sbin/criu'"
}

[ "$(id -u)" = 0 ] || die "criu works as root only: run this as root"
case $dir in
*"'"*) die "no quotes in the directory's name, please: $dir" ;;
/*) ;;
*) dir=$PWD/$dir ;;
esac
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9 # two test packages may start at once

done_if_works
inpath=$(command -v criu || true)
if [ -n "$inpath" ] && works "$inpath"; then
	wrap "'$inpath'"
	done_if_works
fi

ID='' ID_LIKE='' VERSION_CODENAME=''
# shellcheck disable=SC1091
. /etc/os-release
case $ID:$VERSION_CODENAME:$ID_LIKE in
debian:bookworm:*) unpack_trixie ;;
debian:* | ubuntu:* | *:*debian*)
	apt-get -qq update >&2 || die "apt-get update failed"
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y criu >&2 || die "apt-get install criu failed"
	;;
fedora:* | *:*fedora* | *:*rhel*) dnf -q -y install criu >&2 || die "dnf install criu failed" ;;
*) die "no known way to install criu on $ID: put a working one in PATH" ;;
esac
if [ ! -x "$dir/criu" ]; then
	inpath=$(command -v criu) || die "criu was installed but is not in PATH"
	wrap "'$inpath'"
fi
done_if_works
"$dir/criu" check >&2 || true
die "criu is installed in $dir but fails its own check on this kernel (see above)"
