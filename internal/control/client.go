package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// answerMost is the longest answer that is read.
const answerMost = 64 << 20

var (
	// ErrNoDaemon: nobody listens; the daemon has died, or has no socket.
	ErrNoDaemon = errors.New("no daemon answers")
	// ErrForbidden: the daemon is somebody else's.
	ErrForbidden = errors.New("only root, or who runs the mount, may ask its daemon")
	// ErrUnknown: the daemon is of a version that does not know the question.
	ErrUnknown = errors.New("the daemon is of an older version")
)

// Client asks the daemon of one mount.
type Client struct {
	Dir    string // of sockets
	Device string // MAJOR:MINOR
	UID    int    // who must answer

	http *http.Client
}

// Devices lists the mounts that have a socket in dir, which may be of dead daemons.
func Devices(dir string) (devices []string) {
	for _, name := range names(dir) {
		if d := Device(name); d != "" {
			devices = append(devices, d)
		}
	}
	slices.Sort(devices)
	return devices
}

func names(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (c *Client) client() *http.Client {
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, c.Dir, c.Device, c.UID) },
		}}
	}
	return c.http
}

// Close lets go of the connection.
func (c *Client) Close() { c.client().CloseIdleConnections() }

// Get fills out from GET path; a *[]byte gets the answer as it is.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

// Change sends PATCH path and fills out.
func (c *Client) Change(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPatch, path, b, out)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://migratefs"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.client().Do(req)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return ErrNoDaemon
	case errors.Is(err, unix.EACCES), errors.Is(err, errNotTheirs):
		return ErrForbidden
	case err != nil:
		return fmt.Errorf("asking the daemon: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerMost))
	if err != nil {
		return fmt.Errorf("asking the daemon: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, b)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the daemon is of another version: %w", err)
	}
	return nil
}

// refusal is the error in an answer.
func refusal(code int, b []byte) error {
	switch code {
	case http.StatusForbidden:
		return ErrForbidden
	case http.StatusNotFound:
		return fmt.Errorf("%w: %s", ErrUnknown, errorText(code, b))
	}
	return errors.New(errorText(code, b))
}

// errorText is what an answer that is an error says.
func errorText(code int, b []byte) string {
	var told struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &told) == nil && told.Error != "" {
		return told.Error
	}
	return fmt.Sprintf("the daemon answered %d", code)
}

// Status asks how the mount is. An answer about another device is none.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	if err := c.Get(ctx, "/v1/status", &s); err != nil {
		return nil, err
	}
	if s.Device != c.Device {
		return nil, fmt.Errorf("%w: %s answers for %s", ErrNoDaemon, filepath.Base(Name(c.Device)), s.Device)
	}
	return &s, nil
}
