"""Documents from files of every kind."""
