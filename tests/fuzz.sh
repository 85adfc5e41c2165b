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

for package in $packages; do
	mapfile -t targets < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$package"/*_test.go | sort -u)
	each=$((seconds / ${#targets[@]}))
	[ $each -ge 5 ] || each=5
	for target in "${targets[@]}"; do
		echo "fuzz $package $target: ${each}s"
		go test "./$package" -run '^$' -fuzz "^$target\$" -fuzztime "${each}s" | grep -v '^fuzz: elapsed'
	done
done
