package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/migratefs/migratefs/overlay"
)

func once(name string, field func(*options) *string) func(*options, string) error {
	return func(o *options, v string) error {
		f := field(o)
		if *f != "" {
			return usageErrorf("option %s is given twice: give it once", name)
		}
		if v == "" {
			return usageErrorf("option %s= is empty: give a directory", name)
		}
		*f = unescape(v)
		return nil
	}
}

func oneOf(dst *string, name, v string, allowed ...string) error {
	for _, a := range allowed {
		if v == a {
			*dst = v
			return nil
		}
	}
	return usageErrorf("option %s=%q: give %s", name, v, strings.Join(allowed, " or "))
}

func seconds(dst *time.Duration, name, v string) error {
	s, err := strconv.ParseFloat(v, 64)
	if err != nil || s < 0 || s > 1e9 {
		return usageErrorf("option %s=%q: give a number of seconds", name, v)
	}
	*dst = time.Duration(s * float64(time.Second))
	return nil
}

func id(dst **uint32, name, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return usageErrorf("option %s=%q: give a number", name, v)
	}
	u := uint32(n)
	*dst = &u
	return nil
}

func number(dst *int, name, v string, least, most int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return usageErrorf("option %s=%q: give a number from %d to %d", name, v, least, most)
	}
	*dst = n
	return nil
}

// mapping parses ID:SHOWN:COUNT:ID:SHOWN:COUNT..., as fuse-overlayfs has it.
func mapping(dst *overlay.Mapping, name, v string) error {
	fields := strings.Split(v, ":")
	if len(fields)%3 != 0 {
		return usageErrorf("option %s=%q: give ID:SHOWN:COUNT, or several of these", name, v)
	}
	var m overlay.Mapping
	for ; len(fields) > 0; fields = fields[3:] {
		var n [3]uint32
		for i := range n {
			u, err := strconv.ParseUint(fields[i], 10, 32)
			if err != nil {
				return usageErrorf("option %s=%q: %q is not a number", name, v, fields[i])
			}
			n[i] = uint32(u)
		}
		m = append(m, overlay.MappedRange{ID: n[0], Shown: n[1], Count: n[2]})
	}
	*dst = m
	return nil
}
