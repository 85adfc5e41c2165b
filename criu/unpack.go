package criu

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// IsArchive reports whether path is a regular file that may be a checkpoint
// archive: a tar, compressed or not.
func IsArchive(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	un, err := decompress(f, st.Size())
	if err != nil {
		return false
	}
	defer un.Close()
	_, err = tar.NewReader(un).Next()
	return err == nil
}

// IsImages reports whether dir holds images of CRIU.
func IsImages(dir string) bool {
	st, err := os.Stat(path.Join(dir, "inventory.img"))
	return err == nil && st.Mode().IsRegular()
}

// Unpack writes the images in the archive at name into dir, which is there and
// empty: CRIU reads directories. Nothing else of the archive is written.
func Unpack(name, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	un, err := decompress(f, st.Size())
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	defer un.Close()
	err = eachMember(un, func(h *tar.Header, r io.Reader) error {
		in, base := path.Split(h.Name)
		ours := in == "" && strings.HasSuffix(base, ".img") // somebody's tar of a directory
		if in != archiveImages+"/" && !ours {
			return nil
		}
		return unpackOne(root, base, h.Size, r)
	})
	if err != nil {
		return fmt.Errorf("unpack %q: %w", name, err)
	}
	return nil
}

func unpackOne(root *os.Root, name string, size int64, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
