package criu

import (
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// TestLazy: which pages may come later, and where in the image they are.
func TestLazy(t *testing.T) {
	head := &pagemap.PagemapHead{PagesId: proto.Uint32(7)}
	pages := func(addr uint64, n uint64, flags uint32) *pagemap.PagemapEntry {
		return &pagemap.PagemapEntry{Vaddr: proto.Uint64(addr), CompatNrPages: proto.Uint32(0), NrPages: proto.Uint64(n), Flags: proto.Uint32(flags)}
	}
	mapping := func(start, end, madv uint64) *vma.VmaEntry {
		return &vma.VmaEntry{
			Start: &start, End: &end, Madv: &madv, Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0), Prot: proto.Uint32(3),
			Flags: proto.Uint32(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS), Status: proto.Uint32(1), Fd: proto.Int64(-1),
		}
	}
	const lazy = pageLazy | pagePresent
	for _, c := range []struct {
		name    string
		entries []proto.Message
		maps    []*vma.VmaEntry
		want    []LazyRange
		wrong   string
	}{
		{name: "none"},
		{
			name:    "beside others",
			entries: []proto.Message{pages(0x1000, 2, pagePresent), pages(0x4000, 3, lazy), pages(0x8000, 1, pagePresent), pages(0x9000, 1, lazy)},
			want:    []LazyRange{{0x4000, 0x7000, 0x2000, false}, {0x9000, 0xa000, 0x6000, false}},
		},
		{
			name:    "one after the other",
			entries: []proto.Message{pages(0x4000, 3, lazy), pages(0x7000, 1, lazy)},
			want:    []LazyRange{{0x4000, 0x8000, 0, false}},
		},
		{
			name:    "with a gap, and one in another image",
			entries: []proto.Message{pages(0x4000, 1, lazy), pages(0x5000, 1, pageInParent), pages(0x6000, 1, lazy)},
			want:    []LazyRange{{0x4000, 0x5000, 0, false}, {0x6000, 0x7000, 0x1000, false}},
		},
		{
			name:    "partly wiped in a child",
			entries: []proto.Message{pages(0x1000, 1, pagePresent), pages(0x4000, 5, lazy), pages(0xa000, 2, lazy)},
			maps: []*vma.VmaEntry{
				mapping(0x4000, 0x6000, 0), mapping(0x6000, 0x8000, 1<<unix.MADV_WIPEONFORK|1<<unix.MADV_DONTDUMP),
				mapping(0x8000, 0xb000, 1<<unix.MADV_DONTFORK), mapping(0xb000, 0x10000, 1<<unix.MADV_WIPEONFORK),
			},
			want: []LazyRange{
				{0x4000, 0x6000, 0x1000, false}, {0x6000, 0x8000, 0x3000, true}, {0x8000, 0x9000, 0x5000, false},
				{0xa000, 0xb000, 0x6000, false}, {0xb000, 0xc000, 0x7000, true},
			},
		},
		{name: "incremental", entries: []proto.Message{pages(0x4000, 1, pageLazy|pageInParent)}, wrong: "incremental"},
		{name: "not dumped", entries: []proto.Message{pages(0x4000, 1, pageLazy)}, wrong: "do not hold"},
		{name: "twice", entries: []proto.Message{pages(0x4000, 2, lazy), pages(0x5000, 1, lazy)}, wrong: "out of order"},
		{name: "between pages", entries: []proto.Message{pages(0x4001, 2, lazy)}, wrong: "0x4001"},
		{name: "too many", entries: []proto.Message{pages(0x4000, 1<<60, lazy)}, wrong: "at 0x4000"},
	} {
		fsys := fstest.MapFS{"pagemap-1.img": encode(t, magicPagemap, append([]proto.Message{head}, c.entries...)...)}
		if c.maps != nil {
			zero := proto.Uint64(0)
			fsys["mm-1.img"] = encode(t, magicMm, &mm.MmEntry{
				MmStartCode: zero, MmEndCode: zero, MmStartData: zero, MmEndData: zero, MmStartStack: zero, MmStartBrk: zero,
				MmBrk: zero, MmArgStart: zero, MmArgEnd: zero, MmEnvStart: zero, MmEnvEnd: zero, ExeFileId: proto.Uint32(1), Vmas: c.maps,
			})
		}
		m, err := Lazy(fsys, "amd64", 1)
		switch {
		case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong) || !strings.Contains(err.Error(), "pagemap-1.img")):
			t.Errorf("%s: %v", c.name, err)
		case c.wrong == "" && (err != nil || m.File != "pages-7.img" || !reflect.DeepEqual(m.Pages, c.want)):
			t.Errorf("%s: %v, %+v", c.name, err, m)
		}
	}
	if m, err := Lazy(fstest.MapFS{}, "amd64", 1); err != nil || m.Bytes() != 0 {
		t.Errorf("a zombie: %v, %v", m, err)
	}
}

// TestLazyGolden: what it finds in the images that CRIU wrote is what Load counts.
func TestLazyGolden(t *testing.T) {
	fsys := golden(t, "plain")
	c, err := LoadFS(fsys, "plain")
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, task := range c.Tasks {
		m, err := Lazy(fsys, c.Arch, task.PID)
		if err != nil {
			t.Fatal(err)
		}
		sum += m.Bytes()
		for _, r := range m.Pages {
			st, err := fs.Stat(fsys, m.File)
			if err == nil && r.Off+int64(r.End-r.Start) > st.Size() {
				t.Errorf("%v is beyond the end of %s, which has %d bytes", r, m.File, st.Size())
			}
		}
	}
	if sum == 0 || sum != c.LazyMemory || sum >= c.Memory {
		t.Errorf("%d bytes, Load says %d of %d", sum, c.LazyMemory, c.Memory)
	}
}
