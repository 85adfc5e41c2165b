package criu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
)

const (
	magicPagemap = 0x56084025

	pageInParent = 1 << 0 // PE_PARENT: it is in the directory that "parent" leads to
	pagePresent  = 1 << 2 // PE_PRESENT: it is in this directory's pages image
)

// CheckPages finds out whether the images of memory are whole: each must be as
// long as its pagemap says. CRIU reads on at the end of one for ever.
func (c *Checkpoint) CheckPages() error {
	if err := checkPages(c.fsys, pageSize(c.Arch)); err != nil {
		return fmt.Errorf("checkpoint %q: %w", c.Dir, err)
	}
	return nil
}

func checkPages(fsys fs.FS, pageSize int64) error {
	l := &loader{fsys: fsys, c: &Checkpoint{}}
	for _, prefix := range []string{"pagemap-", "pagemap-shmem-"} {
		maps, err := l.numbered(prefix)
		if err != nil {
			return err
		}
		for _, m := range maps {
			if err := checkPagemap(fsys, m.file, pageSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkPagemap compares one pagemap with the size of its pages image.
func checkPagemap(fsys fs.FS, name string, pageSize int64) error {
	im, head, err := openPagemap(fsys, name)
	if err != nil {
		return err
	}
	defer im.close()
	want := int64(0)
	for {
		start := im.off
		var e pagemap.PagemapEntry
		if err := im.next(&e); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		present := e.GetFlags()&pagePresent != 0
		if e.Flags == nil {
			present = !e.GetInParent() // before CRIU 2.x had flags
		}
		n := pagesIn(&e)
		if !present {
			continue
		}
		if n > math.MaxInt64/uint64(pageSize)-uint64(want/pageSize) {
			return im.fail(start, fmt.Errorf("%d pages at one address", n))
		}
		want += int64(n) * pageSize
	}
	pages := fmt.Sprintf("pages-%d.img", head.GetPagesId())
	st, err := fs.Stat(fsys, pages)
	switch {
	case errors.Is(err, fs.ErrNotExist) && want == 0:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &ImageError{File: pages, Err: fmt.Errorf("missing, though %s has pages in it", name)}
	case err != nil:
		return &ImageError{File: pages, Err: bare(err)}
	case st.Size() < want:
		return &ImageError{File: pages, Offset: st.Size(), Err: fmt.Errorf("%w: %d bytes of %d are there", ErrTruncated, st.Size(), want)}
	}
	return nil
}

// openPagemap opens a pagemap and reads its head. The caller closes it.
func openPagemap(fsys fs.FS, name string) (im *image, head *pagemap.PagemapHead, err error) {
	if im, err = openImage(fsys, name, magicPagemap); err != nil {
		return nil, nil, err
	}
	head = new(pagemap.PagemapHead)
	if err = im.next(head); err == io.EOF {
		err = im.fail(im.off, ErrTruncated)
	}
	if err != nil {
		im.close()
		return nil, nil, err
	}
	return im, head, nil
}

// pagesIn is how many pages an entry of a pagemap is of.
func pagesIn(e *pagemap.PagemapEntry) uint64 {
	if e.NrPages == nil {
		return uint64(e.GetCompatNrPages())
	}
	return e.GetNrPages()
}
