package main

import (
	"strconv"
	"strings"
)

// cacheLeast is the least cache that is one: less than a few requests could keep
// nothing until it is used.
const cacheLeast = 4 << 20

// setCacheSize says how much of what was fetched is kept: bytes, or a part of the
// filesystem.
func setCacheSize(o *options, v string) error {
	o.cacheSize, o.cachePercent = 0, 0
	if digits, percent := strings.CutSuffix(v, "%"); percent {
		n, err := strconv.ParseFloat(digits, 64)
		if err != nil || !(n >= 0 && n <= 100) {
			return usageErrorf("option cache_size=%q: give 0%% to 100%% of the filesystem", v)
		}
		if o.cachePercent = n; n == 0 {
			o.cacheSize = -1
		}
		return nil
	}
	if v == "" || strings.HasPrefix(v, "-") || sizeFlag(&o.cacheSize, "cache_size", v) != nil {
		return usageErrorf("option cache_size=%q: give a number of bytes, as 500M or 20G, or a part of the filesystem, as 10%%", v)
	}
	switch {
	case o.cacheSize == 0:
		o.cacheSize = -1
	case o.cacheSize < cacheLeast:
		return usageErrorf("option cache_size=%q is too small for a cache: give at least 4M, or 0 to keep nothing", v)
	}
	return nil
}

// checkCache refuses a cache where nothing is fetched, or where there is no place
// for one.
func (o *options) checkCache(elsewhere bool) error {
	for _, name := range []string{"cache_size", "cachedir"} {
		if o.given[name] && !elsewhere {
			return usageErrorf("%s= is for what is fetched from other hosts, and every lower is on this one: leave it out", name)
		}
	}
	if o.given["cache_size"] && o.upper == "" && o.cacheDir == "" {
		return usageErrorf("cache_size= without a place to keep anything: give cachedir=DIR or upperdir=DIR too")
	}
	return nil
}
