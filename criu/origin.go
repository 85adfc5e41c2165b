package criu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// OriginFile is what migratefs dump writes beside the images of a process that it had
// restored itself: CRIU, which was in there with it, knows nothing of what is outside.
const OriginFile = "migratefs.json"

// Origin says where the files of a dumped process are when the host that dumped it
// is looked at from outside.
type Origin struct {
	Version int    `json:"version"` // 1
	Host    string `json:"host"`    // its name, for people
	Root    string `json:"root"`    // the directory that was the root of the process
}

// originVersion is the one that is written and understood.
const originVersion = 1

// JSON returns what the file holds.
func (o Origin) JSON() ([]byte, error) {
	o.Version = originVersion
	b, err := json.Marshal(o)
	return append(b, '\n'), err
}

// origin reads the file, if there is one.
func (l *loader) origin() error {
	const most = 64 << 10
	f, err := l.fsys.Open(OriginFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &ImageError{File: OriginFile, Err: bare(err)}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return &ImageError{File: OriginFile, Err: bare(err)}
	}
	var o Origin
	if err := json.Unmarshal(b, &o); err != nil {
		return &ImageError{File: OriginFile, Err: fmt.Errorf("not JSON of its kind (%v)", err)}
	}
	if o.Version != originVersion {
		return &ImageError{File: OriginFile, Err: fmt.Errorf("version %d is not known: use the migratefs that wrote it", o.Version)}
	}
	if err := checkPath(o.Root); err != nil {
		return &ImageError{File: OriginFile, Err: err}
	}
	l.c.Origin = o
	return nil
}
