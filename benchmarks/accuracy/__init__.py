"""The parts of energy_accuracy.py: scenarios, the tools at work on them, and the table that comes of it."""
