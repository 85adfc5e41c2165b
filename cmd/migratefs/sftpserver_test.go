package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestSFTPServerFlags(t *testing.T) {
	good := sftpServerFlags{level: "error", facility: "auth", umask: "077", stderr: true, dir: t.TempDir(), readOnly: true}
	for name, change := range map[string]func(*sftpServerFlags){
		"level":    func(f *sftpServerFlags) { f.level = "LOUD" },
		"facility": func(f *sftpServerFlags) { f.facility = "MAIL" },
		"umask":    func(f *sftpServerFlags) { f.umask = "888" },
	} {
		f := good
		change(&f)
		err := f.run(strings.NewReader(""), new(bytes.Buffer))
		var ce *codeError
		if !errors.As(err, &ce) || ce.code != exitUsage {
			t.Errorf("another %s: %v", name, err)
		}
	}
	f := good
	f.umask = ""
	f.dir += "/none"
	if err := f.run(strings.NewReader(""), new(bytes.Buffer)); err == nil {
		t.Error("a directory that is not there is served")
	}
	f = good
	f.umask = ""
	var out bytes.Buffer
	if err := f.run(strings.NewReader("\x00\x00\x00\x05\x01\x00\x00\x00\x03"), &out); err != nil {
		t.Fatal(err)
	}
	if b := out.Bytes(); len(b) < 9 || string(b[4:9]) != "\x02\x00\x00\x00\x03" || !bytes.Contains(b, []byte("attrs@migratefs")) {
		t.Errorf("%q", b)
	}
	if err := f.run(strings.NewReader("GET / HTTP/1.1\r\n\r\n"), &out); err == nil {
		t.Error("what is no SFTP is served")
	}
}
