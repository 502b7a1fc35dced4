"""From what a user asks for to an ordered list of runs."""
