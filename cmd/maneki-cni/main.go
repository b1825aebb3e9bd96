// Command maneki-cni is the CNI plugin that a container runtime executes. It knows nothing: it hands its environment,
// its standard input and the container's network namespace to the agent on this host and prints the agent's answer.
//
// It is small because it starts for each container: 2.5 MB and under 2 ms of processor time, where the whole of Maneki
// linked into one file would cost 20 ms and 50 MB before main.
//
// While the agent is down, ADD fails with the CNI code 11 (try again later), STATUS with 50, and DEL succeeds: it
// leaves a record that the agent works off when it is back (package endpoint/pending).
//
// Settings, by precedence: the environment MANEKI_CNI_SOCKET and MANEKI_CNI_STATE_DIR, then maneki_socket and
// maneki_state_dir in the network configuration, then /run/maneki/cni.sock and /var/lib/maneki/cni.
package main

import (
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

// version is set by the linker (-X main.version=...).
var version = "dev"

func main() {
	// The process ends before it would ever need to collect.
	debug.SetGCPercent(-1)
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: add, Del: del, Check: check, GC: gc, Status: status,
	}, cniversion.All, "CNI plugin maneki-cni "+version+": forwards to the Maneki agent of this host")
}
