"""What is trained by default: a decoder-only transformer, and real text that every machine has."""
