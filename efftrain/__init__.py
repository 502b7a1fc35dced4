"""efftrain tells what a training step costs, how sure it is, and which change makes it cheaper."""

__version__ = "0.1.0"
