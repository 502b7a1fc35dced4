"""Measures somebody else's training: a plain loop, any command, transformers' Trainer, Lightning."""
