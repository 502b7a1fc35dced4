"""Number formats: what computes in which, and what a device can."""
