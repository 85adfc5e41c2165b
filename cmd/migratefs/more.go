package main

import "github.com/spf13/cobra"

// moreCommands are the subcommands about checkpoints.
func moreCommands() []*cobra.Command {
	return []*cobra.Command{newRestoreCommand(), newRestoreInitCommand(), newLazyfsCommand()}
}
