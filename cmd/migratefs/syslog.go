package main

import (
	"io"
	"log/syslog"
)

// syslogOrNothing is where a daemon without a terminal writes.
func syslogOrNothing() io.Writer {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "migratefs")
	if err != nil {
		return io.Discard
	}
	return w
}
