package tunnels

// UseClsact makes the applier behave as on a kernel before 6.6.
func (a *Applier) UseClsact() { a.ipip.options.Clsact = true }
