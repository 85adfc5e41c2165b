package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
)

// optionsText is what is said of the options that optionTable and mountFlags have.
// migratefs(5), docs/options.md, 'migratefs options' and what shells complete come
// of it, and a test sees to it that it names each option once, and no other.
//
//	# SECTION
//
//	NAME=VALUE, NAME, ...
//	  What it does, with `literals`.
//
//go:embed options.txt
var optionsText string

// optionSection is one section of optionsText.
type optionSection struct {
	title string
	items []optionItem
}

// optionItem is what is said of one option, or of a few that belong together.
type optionItem struct {
	terms []string // as people write them: "mode=migrate|overlay"
	names []string
	text  []string // paragraphs
}

var optionSections = sync.OnceValue(func() (sections []optionSection) {
	for block := range strings.SplitSeq(strings.TrimSpace(optionsText), "\n\n") {
		if title, ok := strings.CutPrefix(block, "# "); ok {
			sections = append(sections, optionSection{title: title})
			continue
		}
		in := &sections[len(sections)-1].items
		head, body, _ := strings.Cut(block, "\n")
		if strings.HasPrefix(head, " ") { // one more paragraph
			last := &(*in)[len(*in)-1]
			last.text = append(last.text, unwrapped(block))
			continue
		}
		item := optionItem{terms: strings.Split(head, ", "), text: []string{unwrapped(body)}}
		for _, term := range item.terms {
			for _, name := range termNames(term) {
				if !slices.Contains(item.names, name) {
					item.names = append(item.names, name)
				}
			}
		}
		*in = append(*in, item)
	}
	return sections
})

// termNames are the options that a term is about: one with its values, or several
// without.
func termNames(term string) []string {
	if name, _, ok := strings.Cut(term, "="); ok {
		return []string{name}
	}
	return strings.Split(term, "|")
}

// unwrapped is a paragraph on one line.
func unwrapped(s string) string { return strings.Join(strings.Fields(s), " ") }

// wrapped breaks a paragraph into indented lines of at most width bytes.
func wrapped(s string, width int, indent string) string {
	var b strings.Builder
	at := 0
	for _, word := range strings.Fields(s) {
		switch {
		case at == 0:
			b.WriteString(indent)
			at = len(indent)
		case at+1+len(word) > width:
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String() + "\n"
}

func newOptionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "options [NAME...]",
		Short: "Explain the options of a mount",
		Long: `Explain the options of a mount, which are given with -o: all of them, or those that are named. Options of mount(8),
overlayfs, fuse and fuse-overlayfs that say what is so anyway, or that are refused, are explained when they are named.`,
		ValidArgsFunction: func(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var all []string
			for _, s := range optionSections() {
				for _, i := range s.items {
					all = append(all, i.names...)
				}
			}
			return all, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, names []string) error {
			w := c.OutOrStdout()
			if len(names) == 0 {
				for n, s := range optionSections() {
					if n > 0 {
						fmt.Fprintln(w)
					}
					fmt.Fprintln(w, s.title)
					for _, i := range s.items {
						fmt.Fprint(w, "\n", i.plain())
					}
				}
				return nil
			}
			for n, name := range names {
				text, err := explained(name)
				if err != nil {
					return err
				}
				if n > 0 {
					fmt.Fprintln(w)
				}
				fmt.Fprint(w, text)
			}
			return nil
		},
	}
}

// explained is what is said of one option, given as NAME or as NAME=VALUE.
func explained(option string) (string, error) {
	name, _, _ := strings.Cut(option, "=")
	for _, s := range optionSections() {
		for _, i := range s.items {
			if slices.Contains(i.names, name) {
				return i.plain(), nil
			}
		}
	}
	one, known := onlyAs[name]
	switch {
	case known:
		return fmt.Sprintf("  %s=%s\n      So it always is: %s.\n", name, one.value, one.why), nil
	case alreadySo[name], strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
		return fmt.Sprintf("  %s\n      Accepted: it says what is so anyway, or is for other programs.\n", name), nil
	case hints[name] != "":
		return fmt.Sprintf("  %s\n      Accepted, and has no effect: %s.\n", name, hints[name]), nil
	case refused[name] != "":
		return fmt.Sprintf("  %s\n      Refused: %s.\n", name, refused[name]), nil
	}
	return "", usageErrorf("unknown option %q: 'migratefs options' lists them", name)
}

// plain is the item for a terminal.
func (i optionItem) plain() string {
	var b strings.Builder
	b.WriteString("  " + strings.Join(i.terms, ", ") + "\n")
	for _, p := range i.text {
		b.WriteString(wrapped(strings.ReplaceAll(p, "`", ""), 79, "      "))
	}
	return b.String()
}

// completeOptions completes the last of the options behind -o.
func completeOptions(_ *cobra.Command, _ []string, typed string) (all []string, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	before := ""
	if parts := splitEscaped(typed, ','); len(parts) > 1 {
		before = strings.Join(parts[:len(parts)-1], ",") + ","
	}
	last := typed[len(before):]
	for _, s := range optionSections() {
		for _, i := range s.items {
			for _, term := range i.terms {
				for _, text := range completions(term) {
					if strings.HasPrefix(text, last) {
						all = append(all, before+text+"\t"+strings.Join(i.terms, ", "))
					}
				}
			}
		}
	}
	if name, dir, ok := strings.Cut(last, "="); ok && len(all) == 0 && slices.Contains([]string{"lowerdir", "lowerdir+", "upperdir", "workdir", "cachedir", "criu"}, name) {
		// Bash and fish know no files behind a prefix: the directories themselves.
		for _, p := range subdirs(dir) {
			all = append(all, before+name+"="+p)
		}
	}
	return all, d
}

// completions are what a term begins with: "mode=migrate" and "mode=overlay" of
// "mode=migrate|overlay", "trash_days=" of "trash_days=N".
func completions(term string) (all []string) {
	name, values, ok := strings.Cut(term, "=")
	if !ok {
		return strings.Split(term, "|")
	}
	if values != strings.ToLower(values) {
		return []string{name + "="}
	}
	for v := range strings.SplitSeq(values, "|") {
		all = append(all, name+"="+v)
	}
	return all
}

// subdirs are the directories whose paths begin with typed.
func subdirs(typed string) (all []string) {
	parent, prefix := filepath.Split(typed)
	entries, _ := os.ReadDir(cmp.Or(parent, "."))
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			all = append(all, parent+e.Name())
		}
	}
	return all
}
