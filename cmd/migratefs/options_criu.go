package main

import "github.com/migratefs/migratefs/layers/seed"

// Options about checkpoints.

// setVerify says what becomes of files that are not as they were when the checkpoint was
// made.
func setVerify(o *options, v string) error {
	var s string
	err := oneOf(&s, "verify", v, "strict", "warn", "off")
	o.verify = map[string]seed.Verify{"strict": seed.Strict, "warn": seed.Warn, "off": seed.Off}[s]
	return err
}

// setView puts this host's / below all lowers.
func setView(o *options, v string) error {
	var s string
	err := oneOf(&s, "view", v, "root", "paths")
	o.viewAll, o.viewPaths = true, s == "paths"
	return err
}
