// Migratefs is a FUSE overlay filesystem whose lower layers may lie on another
// host, reached over nothing but SSH. See README.md.
package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// defaultPath is root's PATH where there is none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func main() {
	if err := hostTool(os.Args); err != nil {
		os.Exit(exitCode(err))
	}
	os.Exit(exitCode(run(os.Args)))
}

func run(args []string) error {
	if os.Getenv("PATH") == "" {
		// mount(8) takes it from its helpers, and we need ssh, fusermount3, mount.
		if err := os.Setenv("PATH", defaultPath); err != nil {
			return err
		}
	}
	root := newRootCommand()
	rest := args[1:]
	switch filepath.Base(args[0]) {
	case "lazyfs":
		rest = append([]string{"lazyfs"}, rest...)
	case "migratefs-runc", "migratefs-crun":
		rest = append([]string{"runc"}, rest...)
	case "mount.migratefs", "mount.fuse.migratefs":
		rest = append([]string{"--helper"}, rest...)
	case "umount.migratefs", "umount.fuse.migratefs":
		rest = append([]string{"umount", "--helper"}, rest...)
	}
	root.SetArgs(rest)
	return root.Execute()
}

func newRootCommand() *cobra.Command {
	var m mountCommand
	root := &cobra.Command{
		Use:   "migratefs [-f] [-d] -o lowerdir=...[,upperdir=...] MOUNTPOINT",
		Short: "Stack directories, local or on other hosts, into one; changes go to the top",
		Long: strings.TrimSpace(`
Stack directories, local or on other hosts, into one; changes go to the top.

  migratefs -o lowerdir=/oldscratch,upperdir=/newscratch /scratch
  migratefs -o lowerdir=user@host:/data,upperdir=/var/data /data
  migratefs -o criu=IMAGES,lowerdir=user@host:/,upperdir=/var/lib/job1 /mnt
  migratefs restore --from user@host IMAGES

The command returns when the mount is ready. Exit codes: 0 done, 1 failed while
doing it, 2 the command line is wrong, 32 the mount failed.`),
		Args:              m.args,
		RunE:              func(*cobra.Command, []string) error { return m.run() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           build.short(),
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("migratefs {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageErrorf("%v: see 'migratefs --help'", err)
	})
	// A mountpoint may be called anything: what is not a subcommand is one.
	root.SuggestionsMinimumDistance = 0
	root.DisableSuggestions = true
	f := root.Flags()
	f.StringArrayVarP(&m.options, "options", "o", nil, "mount options, separated by commas (see migratefs(5))")
	f.BoolVarP(&m.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVarP(&m.debug, "debug", "d", false, "trace every request, in the foreground")
	f.BoolVar(&m.helper, "helper", false, "called by mount(8): SOURCE MOUNTPOINT")
	f.BoolP("sloppy", "s", false, "accepted for mount(8)")
	f.BoolP("no-mtab", "n", false, "accepted for mount(8)")
	f.BoolP("verbose", "v", false, "accepted for mount(8)")
	_ = f.MarkHidden("helper")
	_ = f.MarkHidden("sloppy")
	_ = f.MarkHidden("no-mtab")
	_ = f.MarkHidden("verbose")
	root.AddCommand(newUmountCommand(), newVersionCommand())
	root.AddCommand(moreCommands()...)
	completeArguments(root)
	return root
}
