package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// completeArguments says what shells complete behind commands and flags.
func completeArguments(root *cobra.Command) {
	for _, c := range append(root.Commands(), root) {
		if c.Flags().Lookup("options") != nil {
			_ = c.RegisterFlagCompletionFunc("options", completeOptions)
		}
		switch {
		case c.ValidArgsFunction != nil:
		case slices.Contains([]string{"umount", "reauth", "status", "top", "set", "report", "bugreport"}, c.Name()):
			c.ValidArgsFunction = completeMounts
		default:
			c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return nil, cobra.ShellCompDirectiveDefault // files
			}
		}
	}
}

// completeMounts completes the mountpoints of our mounts.
func completeMounts(*cobra.Command, []string, string) (points []string, d cobra.ShellCompDirective) {
	all, _ := mounts()
	for _, m := range all {
		if m.fsType == fsType {
			points = append(points, m.point)
		}
	}
	return points, cobra.ShellCompDirectiveNoFileComp
}
