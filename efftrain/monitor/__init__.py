"""Opens the journal of a run, samples the sensors beside it, and hands out a recorder."""
