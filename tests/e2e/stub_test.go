package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelRefusesStubs: what is pending in an upper, the kernel's overlayfs
// does not read: nobody takes what is missing for zeros.
func TestKernelRefusesStubs(t *testing.T) {
	s := newSource(t)
	s.put(t, "pending", 100<<10)
	m := s.mount(t, ",fill=off")
	must(t, os.Chmod(m.Path("pending"), 0o600))
	must(t, os.WriteFile(m.Path("whole"), []byte("whole"), 0o644))
	m.Unmount()

	dir := s.local
	for _, d := range []string{"empty", "kernelwork", "kernel"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	at := filepath.Join(dir, "kernel")
	for _, metacopy := range []string{"on", "off"} {
		must(t, unix.Mount("overlay", at, "overlay", 0, "redirect_dir=on,metacopy="+metacopy+
			",lowerdir="+filepath.Join(dir, "empty")+",upperdir="+s.upper()+",workdir="+filepath.Join(dir, "kernelwork")))
		b, err := os.ReadFile(filepath.Join(at, "pending"))
		whole, werr := os.ReadFile(filepath.Join(at, "whole"))
		must(t, unix.Unmount(at, 0))
		if err == nil {
			t.Errorf("metacopy=%s: the kernel reads %d bytes of a file that is not here", metacopy, len(b))
		}
		if werr != nil || string(whole) != "whole" {
			t.Errorf("metacopy=%s: a whole file is %q, %v", metacopy, whole, werr)
		}
	}
}
