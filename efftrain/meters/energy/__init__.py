"""Joules: from one sensor's raw readings to the ledger of all of them, and whether they agree."""
