package main

// Options that say how files move from the lower to the upper.

func setXattrPolicy(o *options, v string) error {
	var s string
	err := oneOf(&s, "xattr", v, "strict", "lenient")
	o.lenient = s == "lenient"
	return err
}

// setEnospc accepts what is so: a copy-up for which there is no room fails, and
// reads go on.
func setEnospc(_ *options, v string) error {
	if v != "serve" {
		return usageErrorf("option enospc=%q: only enospc=serve is supported: what does not fit is refused, and the rest goes on", v)
	}
	return nil
}

// checkKeeping is for options about what becomes of files in lowers.
func (o *options) checkKeeping() error {
	for _, name := range []string{"keep_lower", "trash_days"} {
		switch {
		case !o.given[name]:
		case o.mode != "migrate":
			return usageErrorf("%s is for mode=migrate: in overlay mode nothing is ever taken from a lower: leave it out", name)
		case o.asCaller:
			return usageErrorf("%s and creds=caller exclude each other: what is in a trash is not the caller's: leave one out", name)
		}
	}
	if o.keepLower && o.given["trash_days"] {
		return usageErrorf("keep_lower keeps everything for good: leave trash_days= out")
	}
	return nil
}
