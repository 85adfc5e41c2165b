// Shimfs shows a directory as package shim does, until it is unmounted:
//
//	shimfs nfs|lustre|honest DIR POINT
//
// It says "ready" when it is mounted.
package main

import (
	"fmt"
	"os"

	"github.com/migratefs/migratefs/tests/shim"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "shimfs nfs|lustre|honest DIR POINT")
		os.Exit(2)
	}
	lies := map[string]shim.Lies{"nfs": shim.NFS(), "lustre": shim.Lustre(), "honest": {}}
	fs, err := shim.Serve(os.Args[2], os.Args[3], lies[os.Args[1]])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	fs.Wait()
}
