// Sbom prints what programs of this repository were built from, as an SPDX 2.3
// document: what they say of themselves, not what go.mod says.
//
//	sbom -version V -commit C -epoch SECONDS PROGRAM...
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type reference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type part struct {
	ID        string      `json:"SPDXID"`
	Name      string      `json:"name"`
	Version   string      `json:"versionInfo,omitempty"`
	File      string      `json:"packageFileName,omitempty"`
	Download  string      `json:"downloadLocation"`
	Analyzed  bool        `json:"filesAnalyzed"`
	License   string      `json:"licenseDeclared"`
	Checksums []checksum  `json:"checksums,omitempty"`
	Refs      []reference `json:"externalRefs,omitempty"`
}

type relation struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

type document struct {
	Spec      string         `json:"spdxVersion"`
	License   string         `json:"dataLicense"`
	ID        string         `json:"SPDXID"`
	Name      string         `json:"name"`
	Namespace string         `json:"documentNamespace"`
	Creation  map[string]any `json:"creationInfo"`
	Parts     []part         `json:"packages"`
	Relations []relation     `json:"relationships"`
}

func main() {
	version := flag.String("version", "0", "of the programs")
	commit := flag.String("commit", "unknown", "they were built from")
	epoch := flag.Int64("epoch", 0, "when, in seconds since 1970")
	flag.Parse()
	if err := write(os.Stdout, *version, *commit, *epoch, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, version, commit string, epoch int64, programs []string) error {
	d := document{
		Spec: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "migratefs-" + version,
		Namespace: "https://github.com/migratefs/migratefs/sbom/" + version + "/" + commit,
		Creation: map[string]any{
			"created":  time.Unix(epoch, 0).UTC().Format(time.RFC3339),
			"creators": []string{"Tool: migratefs-sbom"},
		},
	}
	modules := map[string]part{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(program)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		arch := ""
		for _, s := range info.Settings {
			if s.Key == "GOARCH" {
				arch = s.Value
			}
		}
		us := part{
			ID: id("migratefs-" + arch), Name: "migratefs", Version: version, File: filepath.Base(program), Download: "NOASSERTION",
			License: "Apache-2.0", Checksums: []checksum{{"SHA256", hex.EncodeToString(sum[:])}},
			Refs: []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/github.com/migratefs/migratefs@" + commit + "?arch=" + arch}},
		}
		d.Parts = append(d.Parts, us)
		d.Relations = append(d.Relations, relation{d.ID, "DESCRIBES", us.ID})
		used := []part{module("std", strings.TrimPrefix(info.GoVersion, "go"))}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			used = append(used, module(m.Path, m.Version))
		}
		for _, m := range used {
			modules[m.ID] = m
			d.Relations = append(d.Relations, relation{us.ID, "DEPENDS_ON", m.ID})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(modules)) {
		d.Parts = append(d.Parts, modules[key])
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(d)
}

func module(path, version string) part {
	return part{
		ID: id(path + "-" + version), Name: path, Version: version, Download: "NOASSERTION", License: "NOASSERTION",
		Refs: []reference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
}

var notInID = regexp.MustCompile(`[^a-zA-Z0-9.-]`)

func id(name string) string { return "SPDXRef-" + notInID.ReplaceAllString(name, "-") }
