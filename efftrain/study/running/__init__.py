"""What the fresh process of a run executes."""
