package main

import (
	"strings"

	"github.com/migratefs/migratefs/overlay"
)

// setFill says whether what pending files miss is fetched in the background.
func setFill(o *options, v string) error {
	var s string
	err := oneOf(&s, "fill", v, "on", "off")
	o.noFill = s == "off"
	return err
}

// setFillRate says how many bytes a second that may be.
func setFillRate(o *options, v string) error {
	if v == "" || strings.HasPrefix(v, "-") || sizeFlag(&o.fillRate, "fill_rate", v) != nil || o.fillRate == 0 {
		return usageErrorf("option fill_rate=%q: give a number of bytes a second, as 500K or 10M", v)
	}
	return nil
}

// fill is what is done with pending files. Those of which all is here become ordinary
// ones in any case: there is nothing to wait for.
func (o *options) fill() overlay.FillConfig {
	return overlay.FillConfig{Finish: true, Fetch: !o.noFill, Rate: o.fillRate}
}
