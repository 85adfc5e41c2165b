package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Exit codes, as README.md and the manual page have them.
const (
	exitOK      = 0
	exitFailure = 1  // failed while doing it
	exitUsage   = 2  // the command line is wrong
	exitFound   = 3  // it was looked, and found: see plan and check
	exitMount   = 32 // the mount failed, as mount(8) has it
)

// codeError is an error that ends the program with a code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

func usageErrorf(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

func mountErrorf(format string, args ...any) error {
	return &codeError{exitMount, fmt.Errorf(format, args...)}
}

// asMountError makes err a failed mount unless it already is something else.
func asMountError(err error) error {
	var ce *codeError
	if err == nil || errors.As(err, &ce) {
		return err
	}
	return &codeError{exitMount, err}
}

// exitCode prints err on one line and returns the code to end with.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	code := exitFailure
	var ce *codeError
	if errors.As(err, &ce) {
		code = ce.code
	}
	if line := oneLine(err.Error()); line != "" {
		fmt.Fprintf(os.Stderr, "migratefs: %s\n", line)
	}
	return code
}

// oneLine keeps an error on its line, whatever names are in it, and the terminal as it is.
func oneLine(s string) string {
	return onLine(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; "))
}
