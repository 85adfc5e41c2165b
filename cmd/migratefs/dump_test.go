package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Images are removed after a dump that failed, unless they were whole by then: CRIU may
// have ended the process before it, or who ran it, died.
func TestDumpThatFailsLate(t *testing.T) {
	for _, whole := range []bool{false, true} {
		dir, state := filepath.Join(t.TempDir(), "images"), t.TempDir()
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"core-1.img", dumpLog} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if whole {
			if err := os.WriteFile(filepath.Join(state, wholeMark), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d := dumpCommand{dir: dir, state: state, made: true, pid: 7}
		if err := d.lock(); err != nil {
			t.Fatal(err)
		}
		defer d.images.Close()
		died := errors.New("the helper has died")
		err := d.finish(died)
		if !errors.Is(err, died) || strings.Contains(err.Error(), "they stay") != whole {
			t.Errorf("whole %v: %v", whole, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "core-1.img")); (err == nil) != whole {
			t.Errorf("whole %v: the image: %v", whole, err)
		}
		if _, err := os.Stat(filepath.Join(dir, dumpLog)); err != nil {
			t.Errorf("whole %v: the log: %v", whole, err)
		}
		if _, err := os.Stat(state); err == nil {
			t.Errorf("whole %v: the state directory is left", whole)
		}
	}
}

// Two dumps into one directory: who comes second is kept out, and removes nothing of the
// first, of whose process the images may be all there is.
func TestDumpBesideAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first, second := dumpCommand{dir: dir}, dumpCommand{dir: dir}
	if err := first.lock(); err != nil {
		t.Fatal(err)
	}
	defer first.images.Close()
	err := second.prepare()
	if err == nil || !strings.Contains(err.Error(), "another dump is writing") {
		t.Errorf("the second: %v", err)
	}
	image := filepath.Join(dir, "core-1.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	second.cleanUp(true)
	if _, err := os.Stat(image); err != nil {
		t.Errorf("the first's image: %v", err)
	}
}

// Who may rename the image directory can put a link in its place: what another dump than
// this one has put somewhere is not removed.
func TestDumpCleansUpNothingElse(t *testing.T) {
	base := t.TempDir()
	dir, moved, other := filepath.Join(base, "images"), filepath.Join(base, "moved"), filepath.Join(base, "other")
	for _, d := range []string{dir, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "core-1.img"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := dumpCommand{dir: dir, state: t.TempDir(), made: true}
	if err := d.lock(); err != nil {
		t.Fatal(err)
	}
	defer d.images.Close()
	if err := errors.Join(os.Rename(dir, moved), os.Symlink(other, dir)); err != nil {
		t.Fatal(err)
	}
	d.cleanUp(true)
	if _, err := os.Stat(filepath.Join(other, "core-1.img")); err != nil {
		t.Errorf("what another has there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(moved, "core-1.img")); err == nil {
		t.Error("the image of the dump that failed is left")
	}
}
