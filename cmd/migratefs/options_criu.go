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
