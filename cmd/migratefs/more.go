package main

import "github.com/spf13/cobra"

// moreCommands are the subcommands about checkpoints, and those for before,
// during and after a migration.
func moreCommands() []*cobra.Command {
	return []*cobra.Command{
		newRestoreCommand(), newRestoreInitCommand(), newRestorePagesCommand(), newDumpCommand(), newDumpInsideCommand(), newLazyfsCommand(),
		newPlanCommand(), newDrainCommand(), newCheckCommand(), newUndoCommand(), newResolveCommand(), newSFTPServerCommand(),
		newReauthCommand(), newOptionsCommand(), newDoctorCommand(),
		newWaitCommand(), newDetachCommand(), newSettleCommand(), newRuncCommand(),
		newStatusCommand(), newSetCommand(), newTopCommand(), newReportCommand(), newBugreportCommand(),
	}
}
