// Package datastoretest is the conformance suite that every datastore backend
// passes, and the decorators with which tests above the datastore make a store
// fail: Faulty and NoTxn.
package datastoretest
