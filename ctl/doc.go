// Package ctl is the command line: calicoctl's verbs, flags, tables and result
// lines (spec/calico.md §7) over package resource, one file per verb.
//
// Called as calicoctl or kubectl-calico (by the name of the executable) it
// behaves as that program, and every error ends it with 1. Under its own names
// each class of error has its exit code:
//
//	0  success
//	1  any error that is none of the following
//	2  unknown command, flag or argument
//	3  a file, resource or configuration that is not valid, or an operation that
//	   a resource does not support; nothing was changed
//	4  the resource named does not exist
//	5  the resource exists already, or was changed meanwhile
//	6  the datastore does not answer
//	7  root, credentials or a certificate are missing or refused
//	8  the agent of this host is not running
//	9  a port, lock or name is taken
//
// An error is one line on stderr that ends with the remedy. It has several lines
// only when it lists several resources or several fields.
//
// Documents of Kubernetes are taken wherever resources are read from files. Long
// work shows its progress on a terminal and nowhere else.
//
// It never refuses to work because of a difference in versions.
package ctl
