package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/migratefs/migratefs/internal/control"
)

// logger writes to the file that log= names, else to stderr, which under systemd is
// the journal. A daemon in the background without log= has nobody to read its stderr
// and writes to the journal or, where there is none, to syslog.
func (m *mountCommand) logger(background bool) (*slog.Logger, error) {
	level := slog.LevelInfo
	if m.debug {
		level = slog.LevelDebug
	}
	sink, err := m.logSink(background)
	if err != nil {
		return nil, err
	}
	m.log = control.NewLog(sink, level)
	log := m.log.Logger()
	slog.SetDefault(log)
	return log, nil
}

func (m *mountCommand) logSink(background bool) (slog.Handler, error) {
	if m.opts.logFile != "" {
		path, err := filepath.Abs(m.opts.logFile)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("log file: %w", err)
		}
		return control.NewText(f), nil
	}
	if background || control.UnderJournal() {
		if j := control.NewJournal(); j != nil {
			return j.WithAttrs([]slog.Attr{slog.String("mount", m.point)}), nil
		}
	}
	if background {
		return control.NewText(syslogOrNothing()), nil
	}
	return control.NewText(os.Stderr), nil
}
