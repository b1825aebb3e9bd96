// Package lab builds a network of several hosts on one machine, out of
// namespaces, and runs the real maneki binary on each of them.
//
// A host is a network, a mount and a UTS namespace kept alive by a small pause
// process. In its mount namespace /run is empty, /etc, /opt and /var/lib are
// overlays, and the directories an agent writes to are private; so every
// default path of the agent, of its command line and of CNI works unchanged on
// every host. A subnet is a namespace with a Linux bridge, a router is a
// namespace that forwards, a container is a network and UTS namespace attached
// by the CNI executable that `maneki cni install` put on its host.
//
// Nothing is ever made in the root network namespace: links are created inside
// the namespaces they belong to. All objects die with processes, and every
// process of a lab carries a marker in its environment (see Marker), so that
// Down finds all of them even when the state under /run/maneki-lab is lost.
package lab
