// Package verbs is the command tree of maneki with the verbs of all its parts.
package verbs

import (
	"github.com/spf13/cobra"

	"github.com/manekinet/maneki/agent/agentcmd"
	"github.com/manekinet/maneki/cni/cnicmd"
	"github.com/manekinet/maneki/ctl"
	"github.com/manekinet/maneki/lab/labcmd"
)

// Options are those of the program called maneki.
func Options(version, commit string) ctl.Options {
	return ctl.Options{
		Version:      version,
		GitRevision:  commit,
		Commands:     []*cobra.Command{labcmd.Command(), cnicmd.Command()},
		NodeCommands: []*cobra.Command{agentcmd.Run(version)},
	}
}
