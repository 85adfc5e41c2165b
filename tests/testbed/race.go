//go:build race

package testbed

// raceEnabled tells whether the tests were built with -race.
const raceEnabled = true
