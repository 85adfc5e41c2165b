package conformance

import (
	"slices"
	"strings"
)

// deviate is something that a case sees on some kinds of mounts, other than on
// ext4.
type deviate struct {
	kinds string // their names, or parts of them; "": all
	name  string // of the case
	label string
	seen  string
	why   string
}

// deviations are all that we know of, and mean to keep.
var deviations = []deviate{
	{"", "fallocate", "collapse", "ENOTSUP, 100000 bytes f7757818aca9", "FUSE carries no such request"},
	{"", "fallocate", "insert", "ENOTSUP, 100000 bytes f7757818aca9", "FUSE carries no such request"},
	{"", "handles", "name_to_handle_at", "ENOTSUP", "one would be good for as long as the kernel remembers the file, and stale then"},
	{"", "rename-whiteout", "RENAME_WHITEOUT", "EINVAL", whiteouts},
	{"", "rename-whiteout", "new", `["f"]`, whiteouts},
	{"overlay", "nodes", "a whiteout", "EPERM", whiteouts},
	{"caller", "nodes", "mknod of a stranger", "EPERM", "the kernel asks for CAP_MKNOD before it asks us"},
	{"caller", "nodes", "open of the null device", "EACCES", nodev},
	{"caller", "nodes", "written to it", "-1 EBADF", nodev},
	{"migrate,lower migrate,two", "deep", "rename in the middle", "EXDEV", mvCopies},
	{"migrate,two", "rename", "EXCHANGE with a directory", "EXDEV", mvCopies},
	{"migrate,two", "rename", "after EXCHANGE",
		"[. d d/h=content of d/h e e/k=content of e/k full full/x=content of full/x g=content of f new=content of g]", mvCopies},
	{"migrate,two", "rename", "EXCHANGE back", "EXDEV", mvCopies},
	{"migrate,two", "rename", "over an emptied directory", "EXDEV", mvCopies},
	{"migrate,two", "rename", "onto the old name", "EISDIR", mvCopies},
	{"migrate,two", "rename", "in the end", "[. d d/h=content of f e full full/x=content of full/x new=content of g]", mvCopies},
	{"shim", "rename", "EXCHANGE", "EINVAL", noExchange},
	{"shim", "rename", "EXCHANGE with a directory", "EINVAL", noExchange},
	{"shim", "rename", "after EXCHANGE",
		"[. d d/h=content of d/h e e/k=content of e/k full full/x=content of full/x g=content of g new=content of f]", noExchange},
	{"shim", "rename", "EXCHANGE back", "EINVAL", noExchange},
	{"shim", "rename", "over a file (2)", "[. d d/h=content of g e e/k=content of e/k full full/x=content of full/x new=content of f]", noExchange},
	{"shim", "rename", "in the end", "[. d=content of f e e/h=content of g full full/x=content of full/x]", noExchange},
	{"", "direct", "unaligned", "100 ok", "O_DIRECT asks for no alignment: what is written or read so is copied"},
	{"lower two", "flags-kept", "idir", "0", upwards},
	{"lower two", "flags-kept", "create in idir after the write", "ok", upwards},
	{"migrate,lower migrate,two single caller", "ctime", "write in a directory", "ok mtime false ctime true",
		"a file comes up by a link into its directory, and no call sets a ctime back (the kernel's overlayfs shows it too)"},
}

const mvCopies = "in migrate mode, where other hosts may have the layers too, a directory that lies in several layers is not renamed: EXDEV, and mv(1) copies"

const noExchange = "the layers lie on a filesystem that has no flags of renameat2, as Lustre"

const whiteouts = "they are what this filesystem is made of: refused as by the kernel's overlayfs, which it cannot be told to be a user's"

const nodev = "with creds=caller nobody would look at a device's mode when it is opened: it is mounted nodev"

const upwards = "the flags i and a of a directory stay below when something in it comes up: with them, nothing could"

func deviation(k *kind, name, label string) *deviate {
	has := func(part string) bool { return strings.Contains(k.name, part) }
	for i := range deviations {
		d := &deviations[i]
		if d.name == name && d.label == label && (d.kinds == "" || slices.ContainsFunc(strings.Fields(d.kinds), has)) {
			return d
		}
	}
	return nil
}
