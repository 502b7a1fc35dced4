"""Text on this machine, and how it becomes tokens in batches."""
