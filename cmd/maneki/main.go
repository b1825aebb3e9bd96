// Command maneki is a container network in one binary: the agent of a host,
// the command line, and a laboratory. Under the names calicoctl and
// kubectl-maneki it is that command.
package main

import (
	"context"
	"os"

	"github.com/manekinet/maneki/cmd/verbs"
	"github.com/manekinet/maneki/ctl"
)

// Stamped by the linker; see the Makefile.
var (
	version = "v0.0.0-dev"
	commit  = "unknown"
)

func main() {
	o := verbs.Options(version, commit)
	o.Name = ctl.ProgramName(os.Args[0])
	os.Exit(ctl.Execute(context.Background(), o, os.Args[1:]))
}
