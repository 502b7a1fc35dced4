"""What can be read on this machine: raw counters and powers, one file a source."""
