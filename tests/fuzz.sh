#!/usr/bin/env bash
# Fuzzes every package that has a fuzz target: one for each processor at once, with
# one worker.
#
#   tests/fuzz.sh [SECONDS [PACKAGE]]     for each package, shared among its targets
#
# An input that fails is written below the package's testdata/fuzz: commit it,
# and every later `go test` tries it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
if [ $# -lt 2 ]; then
	packages=$(git grep -l --untracked '^func Fuzz[A-Z]' -- '*_test.go' | xargs -r -n1 dirname | sort -u)
	[ -n "$packages" ] || { echo "fuzz.sh: no fuzz target was found" >&2; exit 1; }
	xargs -n1 -P "$(nproc)" tests/fuzz.sh "$seconds" <<<"$packages"
	exit
fi
package=${2#./}

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go test -c -fuzz . -o "$dir/program" "./$package"
cache=$(go env GOCACHE)/fuzz/$(go list "./$package")
cd "$package" # as go test does

# fuzz TARGET SECONDS. At the end of its time the Go fuzzer sometimes takes its own
# deadline for a failure: it then says "context deadline exceeded" and names no
# input. That, and nothing else, is tried again.
fuzz() {
	local try
	for try in 1 2 3; do
		if "$dir/program" -test.run '^$' -test.fuzz "^$1\$" -test.fuzztime "${2}s" -test.fuzzcachedir "$cache" -test.parallel 1 >"$dir/log" 2>&1; then
			echo "ok  	$package $1: ${2}s, $(grep '^fuzz: elapsed' "$dir/log" | tail -n 1 | sed 's/.*execs: \([0-9]*\).*/\1/') inputs"
			return 0
		fi
		echo "FAIL	$package $1"
		grep -v '^fuzz: elapsed' "$dir/log" || true
		if grep -q 'Failing input' "$dir/log" || ! grep -qx ' *context deadline exceeded' "$dir/log"; then
			return 1
		fi
		echo "the fuzzer met its own deadline (try $try): once more"
	done
	return 1
}

mapfile -t targets < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' ./*_test.go | sort -u)
each=$((seconds / ${#targets[@]}))
[ $each -ge 5 ] || each=5
for target in "${targets[@]}"; do
	fuzz "$target" "$each"
done
