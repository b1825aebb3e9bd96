// Command maneki is a container network in one binary: the agent of a host,
// the command line, and a laboratory. Under the names calicoctl and
// kubectl-maneki it is that command.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agent/agentcmd"
	"github.com/manekinet/maneki/cni/cnicmd"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/lab/labcmd"
)

// Stamped by the linker; see the Makefile.
var (
	version = "v0.0.0-dev"
	commit  = "unknown"
)

func main() {
	os.Exit(ctl.Execute(context.Background(), ctl.Options{
		Name:         ctl.ProgramName(os.Args[0]),
		Version:      version,
		GitRevision:  commit,
		Commands:     []*cobra.Command{labcmd.Command(), cnicmd.Command()},
		NodeCommands: []*cobra.Command{agentcmd.Run(version)},
	}, os.Args[1:]))
}
