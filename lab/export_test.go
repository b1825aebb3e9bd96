package lab

// SetStep sets Config.Step of a lab that is open.
func (l *Lab) SetStep(step func(string)) { l.cfg.Step = step }
