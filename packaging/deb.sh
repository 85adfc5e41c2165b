#!/usr/bin/env bash
# deb.sh VERSION ARCH WORK DIST: a Debian package of $BINARY, or build/ARCH/migratefs.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

version=$1 arch=$2 root=$3 dist=$4
doc=$root/usr/share/doc/migratefs

make install DESTDIR="$root" BINARY="${BINARY:-build/$arch/migratefs}" SYSCONFIG=/etc/default >/dev/null
rm -r "$root/usr/share/licenses"
mkdir -p "$root/usr/share/zsh/vendor-completions"
mv "$root/usr/share/zsh/site-functions/_migratefs" "$root/usr/share/zsh/vendor-completions/"
rmdir "$root/usr/share/zsh/site-functions"
find "$root/usr/share/man" -name '*.[58]' -exec gzip -9n {} +

install -m 644 packaging/copyright "$doc/copyright"
rm "$doc/CHANGELOG.md"
gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
{
	echo "migratefs ($version) unstable; urgency=medium"
	echo
	echo "  * See changelog.gz."
	echo
	echo " -- migratefs maintainers <migratefs@localhost>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$doc/changelog.Debian.gz"

mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$(du -sk --apparent-size "$root" | cut -f1)/" packaging/control >"$root/DEBIAN/control"
echo /etc/default/migratefs >"$root/DEBIAN/conffiles"
install -m 755 packaging/prerm "$root/DEBIAN/prerm"
(cd "$root" && find etc usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$root" "$dist/migratefs_${version}_$arch.deb" >/dev/null
