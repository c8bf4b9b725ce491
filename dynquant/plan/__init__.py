"""Plans: the type, size and place of every tensor before a file is written."""
