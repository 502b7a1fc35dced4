"""What AdamW is made of: checks, formats of its state, the reference update, and the tables that kernels read."""
