package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Server answers on the socket of one mount.
type Server struct {
	m      *Mount
	http   *http.Server
	remove func()
	stop   context.CancelFunc
	ended  chan struct{}

	mu     sync.RWMutex // held for reading by each request that is under way
	closed bool
}

// requestMost is the longest request.
const requestMost = 64 << 10

// Serve answers for m on a socket in dir until Close.
func Serve(dir string, m *Mount) (*Server, error) {
	l, st, err := listen(dir, m.Device)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{m: m, stop: stop, ended: make(chan struct{}), remove: func() { remove(dir, m.Device, st) }}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: requestMost,
		ErrorLog:       slog.NewLogLogger(m.logger().Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			cred, err := peerOf(c)
			p := peer{may: err == nil && mayAsk(cred)}
			if p.may {
				p.pid = int(cred.Pid)
			}
			return context.WithValue(ctx, peerKey{}, p)
		},
	}
	go func() {
		defer close(s.ended)
		m.watch(ctx)
	}()
	go func() { _ = s.http.Serve(l) }()
	return s, nil
}

// peerKey is of contexts: a peer.
type peerKey struct{}

// peer is who asks.
type peer struct {
	may bool
	pid int // 0: in a pid namespace that is not ours
}

func mayAsk(c *unix.Ucred) bool { return c.Uid == 0 || int(c.Uid) == os.Geteuid() }

// Close ends it, and returns when nothing asks or changes the mount any more: what was
// under way has ended, and nobody has the answer.
func (s *Server) Close() {
	s.remove()
	s.stop()
	_ = s.http.Close()
	<-s.ended
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
}

// refused is an error that who asks has caused.
type refused struct{ error }

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f func(ctx context.Context) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r.Context())
			answer(w, v, err)
		})
	}
	get("/v1/status", func(ctx context.Context) (any, error) { return s.m.Status(ctx) })
	get("/v1/conflicts", func(ctx context.Context) (any, error) { return s.m.conflicts(ctx, conflictsMost) })
	get("/v1/missing", func(ctx context.Context) (any, error) { return s.m.missing(ctx) })
	get("/v1/latencies", func(context.Context) (any, error) { return s.m.latencies(), nil })
	get("/v1/top", func(context.Context) (any, error) { return s.m.top(), nil })
	get("/v1/history", func(context.Context) (any, error) { return s.m.history.read(), nil })
	get("/v1/slow", func(context.Context) (any, error) { return map[string]any{"slow": s.m.slow()}, nil })
	get("/v1/log", func(context.Context) (any, error) {
		return map[string]any{"lines": s.m.Log.Lines(), "records": s.m.Log.Records()}, nil
	})
	get("/v1/goroutines", func(context.Context) (any, error) { return map[string]any{"text": goroutines()}, nil })
	get("/v1/settings", func(context.Context) (any, error) { return s.m.settings(), nil })
	mux.HandleFunc("PATCH /v1/settings", func(w http.ResponseWriter, r *http.Request) {
		var change Settings
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, requestMost))
		d.DisallowUnknownFields()
		if err := d.Decode(&change); err != nil {
			answer(w, nil, refused{err})
			return
		}
		err := s.m.change(&change)
		answer(w, s.m.settings(), err)
	})
	mux.HandleFunc("POST /v1/drain", s.serveDrain)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		b, err := s.m.Metrics(r.Context())
		if err != nil {
			answer(w, nil, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		tell(w, http.StatusNotFound, fmt.Sprintf("there is no %s %q", r.Method, r.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, _ := r.Context().Value(peerKey{}).(peer); !p.may {
			tell(w, http.StatusForbidden, ErrForbidden.Error())
			return
		}
		s.mu.RLock()
		defer s.mu.RUnlock()
		if s.closed {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// goroutines is what each goroutine does.
func goroutines() string {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	return b.String()
}

func answer(w http.ResponseWriter, v any, err error) {
	var r refused
	switch {
	case errors.As(err, &r):
		tell(w, http.StatusBadRequest, err.Error())
		return
	case err != nil:
		tell(w, http.StatusInternalServerError, err.Error())
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		tell(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}

func tell(w http.ResponseWriter, code int, text string) {
	b, _ := json.Marshal(map[string]string{"error": text})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}
