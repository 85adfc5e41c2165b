package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/migratefs/migratefs/internal/control"
)

// settable are the settings that can change while it is mounted, and what sets them.
var settable = []struct {
	name, help string
	set        func(s *control.Settings, v string) error
}{
	{"fill", "on or off: what changed files miss of the source is fetched in the background, or stands still", func(s *control.Settings, v string) error { return onOff(&s.Fill, "fill", v) }},
	{"cache_size", "how much of what was fetched is kept: bytes as 20G, a part of the filesystem as 10%, 0 for nothing, or auto; what is too much goes", setCache},
	{"fill_rate", "bytes a second, as 500K or 10M, or off for no limit", setRate},
	{"prefetch", "on or off", func(s *control.Settings, v string) error { return onOff(&s.Prefetch, "prefetch", v) }},
	{"log_level", "error, warn, info or debug", func(s *control.Settings, v string) error {
		var level string
		err := oneOf(&level, "log_level", v, "error", "warn", "info", "debug")
		s.LogLevel = &level
		return err
	}},
	{"trace", "on or off: log every request, of the kernel and to sources", func(s *control.Settings, v string) error { return onOff(&s.Trace, "trace", v) }},
}

func setRate(s *control.Settings, v string) error {
	var o options
	if v == "off" || v == "0" {
		s.FillRate = new(int64)
		return nil
	}
	if err := setFillRate(&o, v); err != nil {
		return usageErrorf("fill_rate=%q: give a number of bytes a second, as 500K or 10M, or off", v)
	}
	s.FillRate = &o.fillRate
	return nil
}

func setCache(s *control.Settings, v string) error {
	s.CacheSize, s.CachePercent = nil, nil
	if v == "auto" {
		s.CacheSize = new(int64)
		return nil
	}
	var o options
	if err := setCacheSize(&o, v); err != nil {
		return err
	}
	if s.CacheSize = &o.cacheSize; o.cachePercent > 0 {
		s.CacheSize, s.CachePercent = nil, &o.cachePercent
	}
	return nil
}

func onOff(to **bool, name, v string) error {
	var s string
	if err := oneOf(&s, name, v, "on", "off"); err != nil {
		return err
	}
	on := s == "on"
	*to = &on
	return nil
}

func newSetCommand() *cobra.Command {
	var lines []string
	for _, s := range settable {
		lines = append(lines, fmt.Sprintf("  %-10s %s", s.name, s.help))
	}
	return &cobra.Command{
		Use:   "set MOUNTPOINT [NAME=VALUE[,NAME=VALUE...]...]",
		Short: "Change a mount while it is mounted, or list what can be changed",
		Long: "Change a mount while it is mounted, until it ends. Without a setting, list those that there are:\n\n" +
			strings.Join(lines, "\n"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf("migratefs set: give a mountpoint, and settings as fill_rate=10M")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			change, n, err := parseSettings(args[1:])
			if err != nil {
				return err
			}
			return set(c.OutOrStdout(), args[0], change, n > 0)
		},
	}
}

// parseSettings reads NAME=VALUE,...; n is how many there were.
func parseSettings(args []string) (s *control.Settings, n int, err error) {
	s = &control.Settings{}
	for _, arg := range args {
	words:
		for word := range strings.SplitSeq(arg, ",") {
			name, v, ok := strings.Cut(word, "=")
			if !ok {
				return nil, 0, usageErrorf("migratefs set: %q: give NAME=VALUE", word)
			}
			for i := range settable {
				if settable[i].name == name {
					if err := settable[i].set(s, v); err != nil {
						return nil, 0, err
					}
					n++
					continue words
				}
			}
			return nil, 0, unsettable(name)
		}
	}
	return s, n, nil
}

// unsettable says why name is not among the settings.
func unsettable(name string) error {
	switch {
	case mountFlags[name] || name == "ro" || name == "rw" || name == "nosymfollow" || name == "symfollow":
		return usageErrorf("migratefs set: %q is changed by 'mount -o remount,%s'", name, name)
	case optionTable[name] != nil:
		return usageErrorf("migratefs set: %q cannot be changed while it is mounted: unmount, and mount with it; 'migratefs set --help' lists what can", name)
	}
	return usageErrorf("migratefs set: there is no setting %q: 'migratefs set --help' lists those that there are", name)
}

func set(out io.Writer, point string, change *control.Settings, changes bool) error {
	m, err := findOne(point)
	if err != nil {
		return err
	}
	var now control.Settings
	if changes {
		err = m.client.Change(context.Background(), "/v1/settings", change, &now)
	} else {
		err = m.client.Get(context.Background(), "/v1/settings", &now)
	}
	if err != nil {
		return m.failed(err)
	}
	word := map[bool]string{true: "on", false: "off"}
	if now.Fill != nil {
		fmt.Fprintf(out, "fill=%s\n", word[*now.Fill])
	}
	if now.CacheSize != nil {
		size := strconv.FormatInt(*now.CacheSize, 10)
		switch *now.CacheSize {
		case 0:
			size = "auto"
		case -1:
			size = "0"
		}
		fmt.Fprintf(out, "cache_size=%s\n", size)
	}
	if now.FillRate != nil {
		rate := "off"
		if *now.FillRate > 0 {
			rate = strconv.FormatInt(*now.FillRate, 10)
		}
		fmt.Fprintf(out, "fill_rate=%s\n", rate)
	}
	if now.Prefetch != nil {
		fmt.Fprintf(out, "prefetch=%s\n", word[*now.Prefetch])
	}
	if now.LogLevel != nil {
		fmt.Fprintf(out, "log_level=%s\n", *now.LogLevel)
	}
	if now.Trace != nil {
		fmt.Fprintf(out, "trace=%s\n", word[*now.Trace])
	}
	return nil
}

// findOne finds the mount on point.
func findOne(point string) (*seenMount, error) {
	all, err := findMounts(point)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// failed says why the daemon of s told nothing.
func (s *seenMount) failed(err error) error {
	if s.err = err; s.status == nil {
		switch why := s.why(); {
		case strings.HasPrefix(why, "does not answer"):
		default:
			return fmt.Errorf("%q %s", s.point, why)
		}
	}
	return fmt.Errorf("%q: %w", s.point, err)
}
