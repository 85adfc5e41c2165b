package main

import (
	"fmt"

	"github.com/migratefs/migratefs/internal/control"
)

// doingColumns are what is told of a process or a file.
var doingColumns = []column[*control.Doing]{
	{"REQUESTS", 3, func(d *control.Doing) string { return fmt.Sprint(d.Requests) }},
	{"FAILED", 7, func(d *control.Doing) string { return fmt.Sprint(d.Failed) }},
	{"WAITED", 0, func(d *control.Doing) string { return shortTime(d.Waited) }},
	{"LONGEST", 1, func(d *control.Doing) string { return shortTime(d.Longest) }},
	{"READ", 5, func(d *control.Doing) string { return someBytes(d.Read) }},
	{"WRITTEN", 4, func(d *control.Doing) string { return someBytes(d.Written) }},
	{"FETCHED", 6, func(d *control.Doing) string { return someBytes(d.Fetched) }},
	{"COPIED UP", 2, func(d *control.Doing) string {
		if d.CopyUps == 0 {
			return ""
		}
		return fmt.Sprintf("%d, %s", d.CopyUps, bytesText(d.Copied))
	}},
}
