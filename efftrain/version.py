"""The version, apart from the package's own file, which leads to everything that is public."""

__version__ = "0.1.0"
