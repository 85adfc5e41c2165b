package criu

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// errorLine is a line of CRIU's log that tells of an error:
// "(00.012345)   4321: Error (criu/files-reg.c:2263): File x has bad size ...".
var errorLine = regexp.MustCompile(`^\([0-9.]+\)\s*(?:[0-9]+: )?\s*Error \(([^)]*)\): (.*)$`)

// harmless are errors that CRIU logs in a restore which works.
var harmless = []string{
	"rlimit: Can't setup RLIMIT_NOFILE for self",
}

// maxLogErrors bounds what LogErrors returns; the first ones say what happened.
const maxLogErrors = 8

// LogErrors returns the error messages of a log that CRIU wrote, in order,
// without the ones that mean nothing.
func LogErrors(log io.Reader) []string {
	var out []string
	sc := bufio.NewScanner(log)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		m := errorLine.FindStringSubmatch(sc.Text())
		if m == nil || isHarmless(m[2]) {
			continue
		}
		if out = append(out, strings.TrimSpace(m[2])); len(out) == maxLogErrors {
			break
		}
	}
	return out
}

func isHarmless(msg string) bool {
	for _, h := range harmless {
		if strings.HasPrefix(msg, h) {
			return true
		}
	}
	return false
}

// meaning is what an error that matches means for people.
type meaning struct {
	match   *regexp.Regexp
	meaning string
}

// meanings are what CRIU's errors mean for somebody who restores elsewhere; the
// first that matches counts.
var meanings = []meaning{
	{regexp.MustCompile(`No space left on device|Disk quota exceeded`), "the filesystem that the upper lies on is full: make room, or name another with --upperdir, and restore again"},
	{regexp.MustCompile(`has bad size|has bad mode|has bad build-ID|build-ID`), "a file is not the one that the process had when it was dumped; bring it back on the source, or dump again"},
	{regexp.MustCompile(`(?i)can't open file .*: No such file|can't open .* on .*No such file`), "a file that the process had is missing on the source, or lies under a directory that does not move (/proc, /sys, /dev, /run; --bind PATH takes more from this host)"},
	{regexp.MustCompile(`(?i)(fork|clone).*File exists|Unable to (fork|create).*exist|Pid .* do not match expected`), "a process id that the process needs is taken; try again"},
	{regexp.MustCompile(`(?i)pid_max|(fork|clone).*Invalid argument`), "a process id of the checkpoint is above /proc/sys/kernel/pid_max of this host: raise it"},
	{regexp.MustCompile(`(?i)cpu (feature|capabilit)|FPU|xsave|CPU.*not supported|runtime.*cpu`), "this host's processor lacks something that the other's had"},
	{regexp.MustCompile(`Can't stat mountpoint`), "the directory that something was mounted on is not in the root directory that the process gets: make it on the source, or see --map"},
	{regexp.MustCompile(`(?i)--shell-job`), "the process belongs to a terminal: start it with setsid and without one, or give -- --shell-job"},
	{regexp.MustCompile(`(?i)tcp|--tcp-`), "the process holds TCP connections: see CRIU's --tcp-established and --tcp-close"},
	{regexp.MustCompile(`(?i)can't bind|address already in use|Cannot assign requested address`), "an address that the process listens on is taken, or is not this host's"},
	{regexp.MustCompile(`(?i)external|--inherit-fd`), "the dump left something to whoever restores: an external mount is given with --map, or -- --external 'mnt[KEY]:/dir' for one of this host; a descriptor (file[...], tty[...]) cannot be: dump again without that"},
	{regexp.MustCompile(`Input/output error|Stale file handle|Transport endpoint is not connected`), "a file could not be fetched from the source, or changed there meanwhile: see the system's log, and restore again when the source answers"},
	{regexp.MustCompile(`(?i)vdso`), "this CRIU is too old for this kernel: use a newer one (--criu PATH)"},
	{regexp.MustCompile(`(?i)Function not implemented|kernel.*(?:support|lack)|support.* kernel`), "this host's kernel lacks what the process needs: see criu check --all, and restore on a host with a kernel as the other's"},
	{regexp.MustCompile(`(?i)operation not permitted|permission denied`), "root lacks a right here that restoring needs (a container, perhaps?)"},
}

// dumpMeanings are those of a dump's errors.
var dumpMeanings = []meaning{
	{regexp.MustCompile(`No space left on device|Disk quota exceeded`), "the filesystem of the images is full: make room, or name another directory with -D"},
	{regexp.MustCompile(`--file-locks`), "the process holds locks on files: give -- --file-locks, if no process that is not dumped holds any on the same files"},
	{regexp.MustCompile(`(?i)--shell-job|session leader .*outside|is not a session leader|dangling tty`), "the process belongs to a terminal or a session that is not dumped: give -- --shell-job, or start it with setsid and without a terminal"},
	{regexp.MustCompile(`Connected TCP socket`), "the process holds TCP connections: see CRIU's --tcp-established and --tcp-close"},
	{regexp.MustCompile(`ghost file .*increase limit`), "a deleted file that is still open is larger than what CRIU puts into the images: give -- --ghost-limit SIZE"},
	{regexp.MustCompile(`(?i)link[-_ ]remap`), "a file that is open was deleted and has another name: give -- --link-remap, which makes a name link_remap.N beside it"},
	{regexp.MustCompile(`Can't find suitable path for handle|Can't dump that handle|irmap`), "the process watches files (inotify, fanotify) whose names CRIU does not find: give -- --force-irmap --irmap-scan-path DIR, DIR being a directory above them"},
	{regexp.MustCompile(`half of stream unix`), "the process is connected to another that is not dumped, by a stream socket, which CRIU cannot dump: end the connection, or dump both"},
	{regexp.MustCompile(`(?i)ext-unix-sk|External socket`), "the process sends datagrams to another that is not dumped: give -- --ext-unix-sk, here and at restore, where that other one has to listen"},
	{regexp.MustCompile(`(?i)unable to (seize|interrupt)|PTRACE_SEIZE|already traced`), "a debugger or tracer has the process: end that"},
	{regexp.MustCompile(`(?i)nested .* namespace`), "the process has namespaces of its own: it is a container, which its runtime dumps (runc checkpoint, podman container checkpoint)"},
	{regexp.MustCompile(`(?i)Dumping tasks in a different|need to be run .*root|CAP_`), "root lacks a right here that dumping needs (a container, perhaps?)"},
	{regexp.MustCompile(`Input/output error|Stale file handle|Transport endpoint is not connected`), "a file could not be fetched from the source, or changed there meanwhile: see the system's log, and dump again when the source answers"},
	{regexp.MustCompile(`(?i)vdso`), "this CRIU is too old for this kernel: use a newer one (--criu PATH)"},
}

// namedFile is a file that an error names; CRIU leaves out the first slash.
var namedFile = regexp.MustCompile(`(?i)(?:file|open|path|link|mkfifo|unlink) (?:file )?['"]?/?([^\s'"():]+/[^\s'"():]+)`)

// Explain returns what the errors of a log mean, and for which file, or "".
func Explain(errs []string) string { return explain(errs, meanings) }

func explain(errs []string, meanings []meaning) string {
	for _, m := range meanings {
		for _, e := range errs {
			if !m.match.MatchString(e) {
				continue
			}
			if f := namedFile.FindStringSubmatch(e); f != nil {
				return fmt.Sprintf("%q: %s", "/"+f[1], m.meaning)
			}
			return m.meaning
		}
	}
	return ""
}

// Summary is one line of all that a log says about why a restore failed.
func Summary(errs []string) string { return summary(errs, meanings) }

// DumpSummary is that for a dump.
func DumpSummary(errs []string) string { return summary(errs, dumpMeanings) }

func summary(errs []string, meanings []meaning) string {
	if len(errs) == 0 {
		return "its log names no error"
	}
	s := fmt.Sprintf("it says %q", strings.Join(errs, "; "))
	if why := explain(errs, meanings); why != "" {
		s += ": " + why
	}
	return s
}
