package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/migratefs/migratefs/layers/remote"
)

// newLazyfsCommand is LazyFS's command line (2016), which a CRIU patched for it
// and its users' scripts know.
func newLazyfsCommand() *cobra.Command {
	var m mountCommand
	c := &cobra.Command{
		Use:   "lazyfs [-f] [-o options] MOUNTPOINT IMGDIR USER@RHOST",
		Short: "Mount a checkpoint's files under flat names, as LazyFS did",
		Long: strings.TrimSpace(`
Mount the files of the checkpoint in IMGDIR on MOUNTPOINT, under the names that
LazyFS gave them: /home/u/f of RHOST is MOUNTPOINT/home.u.f. Bytes come from
USER@RHOST when they are read. What is changed is kept below ` + varDir + `
(or where -o upperdir= says), and is there again when the same is mounted again.
Also called lazyfs, by that name.`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 3 {
				return usageErrorf("lazyfs: want MOUNTPOINT IMGDIR USER@RHOST, got %q", args)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return m.lazyfs(args[0], args[1], args[2])
		},
	}
	f := c.Flags()
	f.BoolVarP(&m.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVarP(&m.debug, "debug", "d", false, "trace every request, in the foreground")
	f.StringArrayVarP(&m.options, "options", "o", nil, "more mount options (see migratefs(5))")
	return c
}

func (m *mountCommand) lazyfs(point, images, host string) error {
	source := host
	if !strings.Contains(host, ":") {
		source += ":/"
	}
	if _, err := remote.ParseTarget(source); err != nil {
		return usageErrorf("%v", err)
	}
	images, err := filepath.Abs(images)
	if err != nil {
		return err
	}
	own := []string{"criu=" + escapeOption(images), "names=flat", "lowerdir=" + escapeOption(source)}
	var upper string
	if !m.hasUpper() {
		if upper, err = lazyfsUpper(point, images, source); err != nil {
			return err
		}
		own = append(own, "upperdir="+escapeOption(upper))
	}
	m.point = point
	m.options = append([]string{strings.Join(own, ",")}, m.options...)
	err = m.run()
	if err != nil && upper != "" {
		// What is empty was made for this mount, and goes with it.
		for dir := upper; dir != varDir && os.Remove(dir) == nil; {
			dir = filepath.Dir(dir)
		}
		_ = os.Remove(varDir)
	}
	return err
}

func (m *mountCommand) hasUpper() bool {
	for _, o := range m.options {
		for _, one := range splitEscaped(o, ',') {
			if strings.HasPrefix(one, "upperdir=") || one == "ro" {
				return true
			}
		}
	}
	return false
}

// lazyfsUpper makes the directory for the changes to one checkpoint's files at
// one mountpoint: the same each time.
func lazyfsUpper(point, images, source string) (string, error) {
	abs, err := filepath.Abs(point)
	if err != nil {
		return "", err
	}
	base := varDir
	if !isRoot() {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errors.New("no home directory for the changes: give -o upperdir=DIR")
		}
		base = filepath.Join(home, ".local/state/migratefs")
	}
	sum := sha256.Sum256([]byte(abs + "\x00" + images + "\x00" + source))
	upper := filepath.Join(base, "lazyfs-"+hex.EncodeToString(sum[:8]), "upper")
	if err := os.MkdirAll(upper, 0o700); err != nil {
		return "", fmt.Errorf("directory for the changes: %w: give -o upperdir=DIR", err)
	}
	return upper, nil
}
