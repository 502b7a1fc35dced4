"""Which runs a comparison is made of, in which order, each in a fresh process, and how they become records."""
