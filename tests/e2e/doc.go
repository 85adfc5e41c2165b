// Package e2e tests the program as its users run it: real mounts, a real sshd,
// a real CRIU. It is made of tests only; what they are made with is in
// tests/testbed.
package e2e
