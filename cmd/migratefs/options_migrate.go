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
