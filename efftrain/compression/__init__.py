"""Smaller models from larger ones: structured pruning and distillation."""
