package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// finding is what doctor says of one thing.
type finding struct {
	Group   string `json:"group"`
	What    string `json:"what"`
	There   bool   `json:"there"`
	Needed  bool   `json:"needed,omitempty"` // nothing, or not what was asked for, works without
	Detail  string `json:"detail,omitempty"`
	Without string `json:"without,omitempty"` // what it costs to lack it
}

// diagnosis is everything that doctor says.
type diagnosis struct {
	Version  string    `json:"version"`
	Kernel   string    `json:"kernel"`
	Machine  string    `json:"machine"`
	Findings []finding `json:"findings"`
}

func (d *diagnosis) lacksNeeded() (what []string) {
	for _, f := range d.Findings {
		if f.Needed && !f.There {
			what = append(what, f.What)
		}
	}
	return what
}

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [--json] [DIR...]",
		Short: "Say what this machine offers to mounts, and what it costs to lack it",
		Long: `Say what this machine offers to mounts: the kernel, its FUSE, programs such as ssh and criu; and, of each directory
DIR that is to be a layer, what its filesystem offers. Everything is tried: a mount is made in a directory of its own
for a moment, and so are files in DIR, which must be writable. For all that is missing it says what is done instead, and
what that costs; nothing is assumed from version numbers.

Exit codes: 0 mounts can be made, 3 something is missing that they need, 1 it could not be looked at.`,
		RunE: func(c *cobra.Command, dirs []string) error {
			d, err := diagnose(dirs)
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				if err := e.Encode(d); err != nil {
					return err
				}
			} else {
				d.print(c.OutOrStdout())
			}
			if what := d.lacksNeeded(); len(what) > 0 {
				return &codeError{exitFound, fmt.Errorf("missing and needed: %s", strings.Join(what, ", "))}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print it as one JSON object")
	return c
}

func diagnose(dirs []string) (*diagnosis, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	d := &diagnosis{Version: build.short(), Kernel: unix.ByteSliceToString(u.Release[:]), Machine: unix.ByteSliceToString(u.Machine[:])}
	d.kernel()
	d.mounting()
	d.programs()
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, d.layer(dir))
	}
	return d, errors.Join(errs...)
}

// print writes the findings for people: what is there in a few lines, what is not
// with what it costs.
func (d *diagnosis) print(w io.Writer) {
	fmt.Fprintf(w, "migratefs %s on Linux %s, %s\n", d.Version, d.Kernel, d.Machine)
	group := ""
	for _, f := range d.Findings {
		if f.Group != group {
			group = f.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		mark := "yes "
		if !f.There {
			mark = "no  "
			if f.Needed {
				mark = "NO  "
			}
		}
		line := "  " + mark + f.What
		if f.Detail != "" {
			line += ": " + f.Detail
		}
		fmt.Fprintln(w, oneLine(line))
		if !f.There && f.Without != "" {
			fmt.Fprint(w, wrapped(f.Without, 96, "        "))
		}
	}
}
