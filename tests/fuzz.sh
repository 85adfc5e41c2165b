#!/usr/bin/env bash
# Fuzzes every package that has a fuzz target, one after another.
#
#   tests/fuzz.sh [SECONDS]     for each package, shared among its targets
#
# An input that fails is written below the package's testdata/fuzz: commit it,
# and every later `go test` tries it.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
packages=$(git grep -l --untracked '^func Fuzz[A-Z]' -- '*_test.go' | xargs -r -n1 dirname | sort -u)
[ -n "$packages" ] || { echo "fuzz.sh: no fuzz target was found" >&2; exit 1; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET SECONDS. At the end of its time the Go fuzzer sometimes
# takes its own deadline for a failure: it then says "context deadline exceeded"
# and names no input. That, and nothing else, is tried again.
fuzz() {
	local try
	for try in 1 2 3; do
		echo "fuzz $1 $2: ${3}s"
		if go test "./$1" -run '^$' -fuzz "^$2\$" -fuzztime "${3}s" >"$log" 2>&1; then
			grep -v '^fuzz: elapsed' "$log"
			return 0
		fi
		grep -v '^fuzz: elapsed' "$log" || true
		if grep -q 'Failing input' "$log" || ! grep -qx ' *context deadline exceeded' "$log"; then
			return 1
		fi
		echo "the fuzzer met its own deadline (try $try): once more"
	done
	return 1
}

for package in $packages; do
	mapfile -t targets < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$package"/*_test.go | sort -u)
	each=$((seconds / ${#targets[@]}))
	[ $each -ge 5 ] || each=5
	for target in "${targets[@]}"; do
		fuzz "$package" "$target" "$each"
	done
done
