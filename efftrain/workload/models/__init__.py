"""The default model: its sizes, and what computes it."""
