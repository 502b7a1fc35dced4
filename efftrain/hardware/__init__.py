"""What this machine is, and what it could reach."""
