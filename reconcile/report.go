package reconcile

import "log/slog"

// report collects what one pass did, for one line in the log instead of one per object.
type report struct {
	puts, dels, healed int
	failures, fresh    int // attempts that failed; of these, first ones
	firstErr           error
}

func (r *report) fail(err error, fresh bool) {
	r.failures++
	if !fresh {
		return
	}
	if r.fresh == 0 {
		r.firstErr = err
	}
	r.fresh++
}

// log says what was repaired and what began to fail; repeated failures are told at debug level only.
func (r *report) log(log *slog.Logger, name string) {
	if r.healed > 0 {
		log.Info("repaired what somebody else had changed", "table", name, "objects", r.healed)
	}
	if r.fresh > 0 {
		log.Warn("could not apply, trying again", "table", name, "objects", r.fresh, "error", r.firstErr)
	}
	log.Debug("applied", "table", name, "put", r.puts, "deleted", r.dels, "failed", r.failures)
}
