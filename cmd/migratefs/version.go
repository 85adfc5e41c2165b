package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker.
var (
	version = "devel"
	commit  = "unknown"
	date    = "" // of the commit
)

// buildInfo says what this program was built from: the same commit, with the same
// Go, gives the same bytes.
type buildInfo struct {
	Version string            `json:"version"`
	Commit  string            `json:"commit"`
	Date    string            `json:"date,omitempty"`
	Go      string            `json:"go"`
	System  string            `json:"system"`
	Modules map[string]string `json:"modules"`
}

var build = readBuild()

func readBuild() buildInfo {
	b := buildInfo{
		Version: version, Commit: commit, Date: date,
		Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH, Modules: map[string]string{},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			b.Modules[m.Path] = m.Version
		}
	}
	return b
}

// short is the version on one line.
func (b buildInfo) short() string {
	s := b.Version + " (" + b.Commit
	if b.Date != "" {
		s += ", " + b.Date
	}
	return s + ")"
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version [--json]",
		Short: "Print the version, the commit and what the program was built with",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				e := json.NewEncoder(c.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(build)
			}
			fmt.Fprintf(c.OutOrStdout(), "migratefs %s\n%s %s\n", build.short(), build.Go, build.System)
			for _, path := range sortedKeys(build.Modules) {
				fmt.Fprintf(c.OutOrStdout(), "  %s %s\n", path, build.Modules[path])
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print it as one JSON object")
	return c
}
