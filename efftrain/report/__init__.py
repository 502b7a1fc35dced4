"""Records in; a table, a page and files for other tools out."""
