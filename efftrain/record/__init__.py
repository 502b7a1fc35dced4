"""What a measurement is, how it is kept, and the schema that every later stage reads."""
