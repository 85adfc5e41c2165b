package control

import (
	"errors"
	"fmt"
	"log/slog"
)

var levels = map[string]slog.Level{"error": slog.LevelError, "warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug}

func (m *Mount) settings() Settings {
	rate, prefetch, trace := m.FS.FillRate(), m.FS.Prefetches(), m.FS.Traces()
	s := Settings{FillRate: &rate, Prefetch: &prefetch, Trace: &trace}
	if m.hasSource() {
		on := m.FS.Fills()
		s.Fill = &on
		if c, ok := m.FS.CacheStats(); ok {
			limit := max(c.Limit, -1)
			s.CacheSize = &limit
		}
	}
	for name, level := range levels {
		if m.Log != nil && m.Log.Level() == level {
			s.LogLevel = &name
		}
	}
	return s
}

// change sets what s has. Nothing is set if anything of it cannot be.
func (m *Mount) change(s *Settings) error {
	level := slog.LevelInfo
	if s.LogLevel != nil {
		var ok bool
		if level, ok = levels[*s.LogLevel]; !ok {
			return refused{fmt.Errorf("log_level %q: it is error, warn, info or debug", *s.LogLevel)}
		}
	}
	if s.FillRate != nil && *s.FillRate < 0 {
		return refused{errors.New("fill_rate is a number of bytes a second, 0 for no limit")}
	}
	if s.FillRate != nil && !m.hasSource() {
		return refused{errors.New("fill_rate is for mounts with a lower on another host")}
	}
	switch cache := s.CacheSize != nil || s.CachePercent != nil; {
	case s.Fill != nil && (!m.hasSource() || !m.FS.Pends()):
		return refused{errors.New("fill is for mounts with an upper and a lower on another host")}
	case cache && (!m.hasSource() || !m.FS.Keeps()):
		return refused{errors.New("cache_size is for mounts with a lower on another host, and upperdir= or cachedir= to keep something in")}
	case s.CacheSize != nil && s.CachePercent != nil:
		return refused{errors.New("cache_size and cache_percent exclude each other")}
	case s.CachePercent != nil && !(*s.CachePercent > 0 && *s.CachePercent <= 100):
		return refused{errors.New("cache_percent is more than 0, and 100 at most")}
	}
	if s.Prefetch != nil && *s.Prefetch && !m.hasSource() || s.Prefetch != nil && !m.FS.SetPrefetch(*s.Prefetch) {
		return refused{errors.New("prefetch cannot be turned on: the mount has prefetch=off, no lower on another host, or no place to keep anything")}
	}
	if s.CacheSize != nil {
		if err := m.FS.SetCacheLimit(*s.CacheSize, 0); err != nil {
			return err
		}
	}
	if s.CachePercent != nil {
		if err := m.FS.SetCacheLimit(0, *s.CachePercent); err != nil {
			return err
		}
	}
	if s.Fill != nil {
		m.FS.SetFill(*s.Fill)
	}
	if s.FillRate != nil {
		m.FS.SetFillRate(*s.FillRate)
	}
	if s.LogLevel != nil {
		m.Log.SetLevel(level)
	}
	if s.Trace != nil {
		m.Trace(*s.Trace)
	}
	m.logger().Info("settings changed", "by", "control socket", "settings", settingsText(s))
	return nil
}

// Trace has every request logged, or none: those of the kernel, and those to sources.
func (m *Mount) Trace(on bool) {
	var to func(kind string, about ...any)
	if on {
		to = m.Log.Trace
	}
	m.FS.Trace(to)
	for i := range m.Layers {
		if r := m.Layers[i].Remote; r != nil {
			r.Trace(to)
		}
	}
}

func settingsText(s *Settings) string {
	text := ""
	add := func(name string, v any) { text += fmt.Sprintf(" %s=%v", name, v) }
	if s.Fill != nil {
		add("fill", *s.Fill)
	}
	if s.FillRate != nil {
		add("fill_rate", *s.FillRate)
	}
	if s.CacheSize != nil {
		add("cache_size", *s.CacheSize)
	}
	if s.CachePercent != nil {
		add("cache_percent", *s.CachePercent)
	}
	if s.Prefetch != nil {
		add("prefetch", *s.Prefetch)
	}
	if s.LogLevel != nil {
		add("log_level", *s.LogLevel)
	}
	if s.Trace != nil {
		add("trace", *s.Trace)
	}
	if text == "" {
		return "none"
	}
	return text[1:]
}
