package main

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// plainArg makes this program go-fuse's loopback without passthrough: plain POINT DIR.
// It is what the same library needs for the same kernel where the daemon answers
// reads and writes, as it must for a lower file that an upper can change.
const plainArg = "-plain"

func servePlain(point, dir string) error {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	second := time.Second // as its example has it
	server, err := fs.Mount(point, root, &fs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther:           true,
			DirectMountStrict:    true,
			FsName:               dir,
			Name:                 "plain",
			Options:              []string{"default_permissions"},
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		},
	})
	if err != nil {
		return err
	}
	server.Wait()
	return nil
}
