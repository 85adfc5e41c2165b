package whiteout

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// What Linux 6.18 wrote for a file of an ext4.
const fromKernel = "00fb1d0001030f23d3d63943408486f21847920266877e0000165e95ac"

func TestHandle(t *testing.T) {
	b, err := hex.DecodeString(fromKernel)
	if err != nil {
		t.Fatal(err)
	}
	h, ok := ParseHandle(b)
	if !ok || h.Type != 1 || hex.EncodeToString(h.Bytes) != "877e0000165e95ac" || hex.EncodeToString(h.UUID[:]) != "030f23d3d63943408486f21847920266" {
		t.Errorf("%+v, %v", h, ok)
	}
	if again, ok := h.Encode(); !ok || !bytes.Equal(again, b) {
		t.Errorf("encoded: %x, %v", again, ok)
	}
	h.Upper = true
	if b, _ := h.Encode(); b[3] != 4 {
		t.Errorf("flags of an upper file: %#x", b[3])
	}
	for name, change := range map[string]func() []byte{
		"empty":           func() []byte { return nil },
		"cut":             func() []byte { return b[:len(b)-1] },
		"a newer version": func() []byte { return append([]byte{1}, b[1:]...) },
		"unknown flags":   func() []byte { return append([]byte{0, 0xfb, 0x1d, 8}, b[4:]...) },
		"another machine": func() []byte { return append([]byte{0, 0xfb, 0x1d, 1}, b[4:]...) },
		"no handle":       func() []byte { return append([]byte{0, 0xfb, 21}, b[3:21]...) },
	} {
		if h, ok := ParseHandle(change()); ok {
			t.Errorf("%s: %+v", name, h)
		}
	}
	for name, h := range map[string]Handle{"no handle": {Type: 1}, "long": {Type: 1, Bytes: make([]byte, 240)}, "no type": {Bytes: []byte{1}}} {
		if b, ok := h.Encode(); ok {
			t.Errorf("%s: %x", name, b)
		}
	}
}

func FuzzHandle(f *testing.F) {
	b, _ := hex.DecodeString(fromKernel)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseHandle(b)
		if !ok {
			return
		}
		again, ok := h.Encode()
		if !ok {
			return // a type that no file has
		}
		if g, ok := ParseHandle(again); !ok || g.Type != h.Type || g.UUID != h.UUID || g.Upper != h.Upper || !bytes.Equal(g.Bytes, h.Bytes) {
			t.Errorf("%x became %x", b, again)
		}
	})
}
