package criu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// shortOptions are CRIU's one-letter options that make sense for a restore or a dump
// (criu/config.c).
var shortOptions = map[byte]string{
	'j': "shell-job",
	'l': "file-locks",
	'x': "ext-unix-sk",
	'J': "join-ns",
	'M': "ext-mount-map",
}

// ourOptions are those that migratefs decides about.
var ourOptions = map[string]string{
	"images-dir":     "give the directory to migratefs restore",
	"root":           "the view is the root",
	"log-file":       "it lies in the work directory",
	"work-dir":       "it lies under /run/migratefs",
	"pidfile":        "the pids are printed",
	"restore-detach": "the command returns when the process runs",
	"config":         "give its options here",
	"action-script":  "it would be looked for in the view",
	"libdir":         "plugins would be looked for in the view",
	"lazy-pages":     "give it to migratefs restore",
	"inherit-fd":     "CRIU is started by migratefs, and gets no descriptors of its caller's: dump again without that descriptor (--external), a terminal with --shell-job",
}

// ourDumpOptions are those for a dump.
var ourDumpOptions = map[string]string{
	"images-dir":      "give the directory to migratefs dump",
	"tree":            "give the pid to migratefs dump",
	"root":            "the process's own root is meant",
	"log-file":        "it lies beside the images",
	"work-dir":        "it is the directory of the images",
	"leave-running":   "give it to migratefs dump",
	"leave-stopped":   "the process runs or ends",
	"config":          "give its options here",
	"action-script":   "it would be looked for in the process's root",
	"libdir":          "plugins would be looked for in the process's root",
	"page-server":     "the images are written to the directory that is given to migratefs dump",
	"lazy-pages":      "memory is dumped into the images; it can be read from there as it is needed",
	"prev-images-dir": "a restore over SSH needs all images in one directory",
	"stream":          "the images are written to a directory",
}

// DumpConfigLines is ConfigLines for options as `criu dump` takes them.
func DumpConfigLines(args []string) (string, error) { return configLines(args, ourDumpOptions) }

// ConfigLines turns options as `criu restore` takes them ("--tcp-established",
// "--external", "mnt[x]:/y") into the lines of a CRIU configuration file, which
// is how a client of its RPC gives options that the protocol has no field for.
func ConfigLines(args []string) (string, error) { return configLines(args, ourOptions) }

func configLines(args []string, ours map[string]string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(args); i++ {
		name, value, hasValue, err := optionName(args[i])
		if err != nil {
			return "", err
		}
		if why, isOurs := ours[name]; isOurs {
			return "", fmt.Errorf("criu option %q cannot be given: %s", "--"+name, why)
		}
		if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			value, hasValue = args[i], true
		}
		if strings.ContainsAny(name+value, "\n\x00\"") {
			return "", fmt.Errorf("criu option %q holds a character that CRIU's configuration cannot", args[i])
		}
		b.WriteString(name)
		if hasValue {
			fmt.Fprintf(&b, " \"%s\"", value)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

func optionName(arg string) (name, value string, hasValue bool, err error) {
	if long, ok := strings.CutPrefix(arg, "--"); ok && long != "" {
		name, value, hasValue = strings.Cut(long, "=")
		if name == "" || strings.ContainsAny(name, " \t#") {
			return "", "", false, fmt.Errorf("%q is not a criu option", arg)
		}
		return name, value, hasValue, nil
	}
	if len(arg) >= 2 && arg[0] == '-' && arg[1] == 'v' {
		return "", "", false, fmt.Errorf("criu option %q: its log is always complete; give -v to migratefs", arg)
	}
	if len(arg) >= 2 && arg[0] == '-' {
		if long := shortOptions[arg[1]]; long != "" {
			return long, arg[2:], len(arg) > 2, nil
		}
	}
	return "", "", false, fmt.Errorf("%q is not a criu option in its long form (--name)", arg)
}

// configuredOptions are the options, as arguments, that CRIU takes from this host's
// configuration files (criu/config.c) each time it runs.
func configuredOptions() (args []string) {
	files := []string{"/etc/criu/default.conf", os.Getenv("CRIU_CONFIG_FILE")}
	if home := os.Getenv("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".criu/default.conf"))
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			if f := strings.Fields(line); len(f) > 0 {
				args = append(args, "--"+strings.TrimLeft(f[0], "-"))
			}
		}
	}
	return args
}
