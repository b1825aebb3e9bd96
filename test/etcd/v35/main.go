// Command etcd is the etcd server of one release line, for the tests of the
// datastore: Debian packages only 3.4. It is a module of its own, so that an old
// server's dependencies do not become the product's.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
