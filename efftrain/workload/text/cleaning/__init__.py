"""What can be taken out of documents, with an account of it."""
